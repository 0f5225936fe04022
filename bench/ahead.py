"""What is left of a model after a month and after a year: `python -m bench.ahead RUN... > docs/drift.md`.

Each RUN is the folder of a finished retraining; the parameter files month_ahead_green.yaml and year_ahead_green.yaml of
pipelines/params are made for it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fraudlib import parts, paths
from fraudlib.errors import FraudError

TEXT: Final = """\
# A month and a year ahead

Trained and tuned on earlier months alone, tested on a later one that nothing was chosen on; {origin}. Between the
months of the last row the tariff changed (2022-12-19: fares, surcharges and flat fares up by about a quarter).
Intervals are 95 %. Written by `python -m bench.ahead` from the runs of `pipelines/params/month_ahead_green.yaml` and
`pipelines/params/year_ahead_green.yaml`.
"""


COLUMNS: Final = (
    "trained on",
    "threshold from",
    "tested on",
    "average precision",
    "recall at 1 % false positives",
    "promised for a week",
    "flagged of honest trips",
    "times the budget",
)


def _interval(part: Mapping[str, float]) -> str:
    return f"{part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}]"


def _percent(part: Mapping[str, float]) -> str:
    return f"{part['value']:.2%} [{part['low']:.2%}, {part['high']:.2%}]"


def row(data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """One run as a line of the table."""
    drift = metrics["drift"]
    cells = [data["splits"][split]["period"] for split in ("train", "valid", "test")]
    cells += [_interval(metrics["average_precision"]), _interval(metrics["recall_at_fpr"]["0.01"])]
    cells += [_percent(drift["expected"]), _percent(drift["realised"]), f"{drift['factor']:.2f}"]
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(folders: list[str]) -> str:
    """The page for these runs."""
    runs = [paths.RunPaths(Path(folder).resolve()) for folder in folders]
    data = [parts.read_json(run.data) for run in runs]
    lines = [row(d, parts.read_json(run.metrics)) for d, run in zip(data, runs, strict=True)]
    table = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *lines]
    return TEXT.format(origin=parts.origin(data[0])) + "\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m bench.ahead RUN...")
    try:
        print(main(sys.argv[1:]), end="")
    except FraudError as err:
        sys.exit(str(err))
