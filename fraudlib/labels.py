"""Analysts' verdicts: exported from the topic with the score of their alert, read, corrected, and old enough.

Only alerts are reviewed. What was never flagged has no verdict, so that labels give the precision of the alerts and
never a recall.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pandas as pd

from fraudlib import manifest, paths
from fraudlib.errors import DataError
from fraudlib.evaluation import Interval, wilson
from fraudlib.schema import TOPIC_ALERTS, TOPIC_LABELS
from fraudlib.settings import Settings
from fraudlib.wire import topics

VERDICTS: Final = ("fraud", "honest")
UNREVIEWED: Final = "nobody has reviewed any"
REQUIRED: Final = ("transaction_id", "verdict", "labeled_at")
# Of the alert that a verdict is on; a label without one has neither.
ALERT_FIELDS: Final = ("anomaly_score", "bundle_id")


@dataclass(frozen=True)
class Labels:
    """Verdicts in the order in which they were given, corrections among them.

    Attributes
    ----------
    table : transaction_id, verdict and labeled_at (UTC) of each, and whatever else the file holds.
    """

    table: pd.DataFrame

    def known_at(self, moment: str, delay_days: float) -> "Labels":
        """Those that were given at least `delay_days` before `moment` (ISO 8601; UTC where it names no zone)."""
        last = pd.Timestamp(moment)
        last = last.tz_localize("UTC") if last.tzinfo is None else last
        return Labels(self.table[self.table.labeled_at <= last - pd.Timedelta(days=delay_days)])

    def last(self) -> dict[str, str]:
        """Last verdict of each transaction."""
        return dict(zip(self.table.transaction_id, self.table.verdict, strict=True))

    def above(self, thresholds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """`reviewed` of the alerts that score above each threshold; labels without a score are left out."""
        score = pd.to_numeric(self.table.get("anomaly_score", pd.Series(np.nan, self.table.index)), errors="coerce")
        return {name: Labels(self.table[score > value]).reviewed() for name, value in thresholds.items()}

    def reviewed(self) -> dict[str, Any]:
        """How many transactions were reviewed, and the share of them that was fraud; JSON-ready.

        The share is the precision of the alerts that somebody looked at, with its 95 % interval. It says nothing of
        what was not flagged.
        """
        verdicts = list(self.last().values())
        frauds = verdicts.count("fraud")
        precision = wilson(frauds, len(verdicts)).to_json() if verdicts else None
        corrected = len(self.table) - len(verdicts)
        return {"reviewed": len(verdicts), "fraud": frauds, "given_again": corrected, "precision": precision}


def none() -> Labels:
    """No labels, as where nobody has reviewed anything yet."""
    return Labels(pd.DataFrame({name: [] for name in REQUIRED}).assign(labeled_at=pd.to_datetime([], utc=True)))


def read(path: Path) -> Labels:
    """Labels of a parquet, CSV or JSON-lines file, in the order of labeled_at; of equal times the later line is last.

    Raises
    ------
    DataError
        If the file is missing or unreadable, lacks a column, or holds another verdict or no time.
    """
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".parquet": pd.read_parquet,
        ".csv": _csv,
        ".jsonl": _lines,
        ".ndjson": _lines,
    }
    if path.suffix not in readers:
        raise DataError(f"{path}: expected labels as .parquet, .csv, .jsonl or .ndjson; convert the file")
    try:
        table = readers[path.suffix](path)
    except (OSError, ValueError, pd.errors.ParserError) as err:
        raise DataError(f"{path}: expected a file of labels, found {' '.join(str(err).split())[:200]}") from err
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing and len(table):
        raise DataError(f"{path}: expected the columns {', '.join(REQUIRED)}, found no {missing[0]}; export them again")
    return Labels(_checked(table.reindex(columns=list(dict.fromkeys([*REQUIRED, *table.columns]))), path))


def of_file(name: str, delay_days: float) -> Labels:
    """Labels of a file that are old enough now; none where `name` is empty. Relative names count from the root."""
    given = read(paths.resolve(name)) if name else none()
    return given.known_at(manifest.now(), delay_days)


def of_topic(settings: Settings) -> Labels:
    """Labels that the topic holds.

    Raises
    ------
    ServiceError
        If the broker does not answer.
    """
    given = _given(settings)
    return Labels(_checked(pd.DataFrame(given), TOPIC_LABELS)) if given else none()


def _given(settings: Settings) -> list[dict[str, Any]]:
    """Labels of the topic in the order in which they were given."""
    given: list[dict[str, Any]] = []
    topics.fetch(settings, TOPIC_LABELS, lambda message: given.append(orjson.loads(message.value)))
    return sorted(given, key=lambda label: str(label["labeled_at"]))


def side_by_side(reviewed: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Table of what `Labels.above` found, a row for each threshold, the precision with its interval in words."""
    rows = {
        name: {
            **part,
            "precision": str(Interval(**part["precision"])) if part["precision"] else "nobody has reviewed any",
        }
        for name, part in reviewed.items()
    }
    return pd.DataFrame(rows).T


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _lines(path: Path) -> pd.DataFrame:
    return pd.DataFrame([orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()])


def _checked(table: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    wrong = ~table.verdict.isin(VERDICTS)
    if wrong.any():
        found = table.verdict[wrong].iloc[0]
        raise DataError(
            f"{path}: expected the verdicts fraud or honest, found {found!r}; correct or leave out that line"
        )
    at = pd.to_datetime(table.labeled_at, utc=True, errors="coerce", format="ISO8601")
    if at.isna().any():
        row = int(np.flatnonzero(at.isna())[0]) + 1
        raise DataError(f"{path}: expected labeled_at in ISO 8601, found none in label {row}; add when it was given")
    return table.assign(labeled_at=at, transaction_id=table.transaction_id.astype(str)).sort_values(
        "labeled_at", kind="stable", ignore_index=True
    )


def export(settings: Settings, path: Path) -> int:
    """Write every label of the topic as JSON lines, corrections among them, each with its alert's score; how many.

    Parameters
    ----------
    path : replaced as a whole once everything was read.

    Raises
    ------
    ServiceError
        If the broker does not answer; a file that was there stays.
    """
    given = _given(settings)
    alerts: dict[str, dict[str, Any]] = {}

    def alert(message: Any) -> None:
        content = orjson.loads(message.value)
        alerts[content["transaction_id"]] = {name: content.get(name) for name in ALERT_FIELDS}

    topics.fetch(settings, TOPIC_ALERTS, alert)
    lines = [orjson.dumps(label | alerts.get(label["transaction_id"], {})) + b"\n" for label in given]
    manifest.write_atomic(path, b"".join(lines))
    return len(lines)
