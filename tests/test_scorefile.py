"""Scoring of files: order, constant memory, all or nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from fraudlib import paths, scorefile
from fraudlib.errors import DataError
from fraudlib.scoring import Scores

SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"


@dataclass
class Fares:
    """A scorer whose score is the fare, so that the order can be seen; fails after `rows` rows."""

    bundle_id: str = "fares"
    threshold: float = 20.0
    rows: float = float("inf")
    largest: int = 0

    def with_repeats(self, scores: Scores, minutes: NDArray[np.float64]) -> Scores:
        assert len(minutes) == len(scores.anomaly_score)
        return scores

    def without_voids(self, scores: Scores, voided: NDArray[np.bool_]) -> Scores:
        assert len(voided) == len(scores.anomaly_score)
        return scores

    def score(self, columns: dict[str, NDArray[Any]]) -> Scores:
        fare = columns["fare_amount"]
        self.largest = max(self.largest, len(fare))
        self.rows -= len(fare)
        if self.rows < 0:
            raise KeyboardInterrupt
        flagged = fare > self.threshold
        seen = {"field": "fare_amount", "expected": 14.1, "surprise": 3.0}
        return Scores(fare, flagged, {int(i): [{**seen, "observed": float(fare[i])}] for i in np.flatnonzero(flagged)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 1,000 trips, in the order of their names."""
    source = tmp_path / "in"
    source.mkdir()
    table = pq.read_table(SAMPLE)
    for i in (2, 0, 1):
        pq.write_table(table.slice(i * 1000, 1000), source / f"green_tripdata_2023-0{i + 1}.parquet")
    return source


def test_rows_count_through_files_in_order_and_in_bounded_chunks(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is one long input by file name, and no chunk is larger than asked plus one batch."""
    monkeypatch.setattr(scorefile, "CHUNK_ROWS", 400)
    scorer = Fares()
    seen: list[int] = []
    summary = scorefile.score_file(folder, tmp_path / "s.parquet", scorer, seen.append)  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["row"].to_pylist() == list(range(3000))
    assert table["anomaly_score"].to_pylist() == pq.read_table(SAMPLE)["fare_amount"].to_pylist()[:3000]
    assert scorer.largest < 800
    assert (sum(seen), summary.rows, summary.simulated) == (3000, 3000, True)
    assert summary.flagged == sum(table["is_flagged"].to_pylist()) > 0


def test_reasons_are_words_and_null_where_nothing_is_flagged(tmp_path: Path, folder: Path) -> None:
    """A flagged row says what surprised; missing reasons and unflagged rows are null."""
    scorefile.score_file(folder, tmp_path / "s.parquet", Fares(), lambda rows: None)  # type: ignore[arg-type]
    for row in pq.read_table(tmp_path / "s.parquet").slice(0, 200).to_pylist():
        words = f"fare_amount {row['anomaly_score']:,.2f}, expected 14.10" if row["is_flagged"] else None
        assert (row["reason_1"], row["reason_2"], row["reason_3"]) == (words, None, None)


def test_an_interrupted_run_leaves_the_old_output_and_nothing_else(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C half way: the earlier output stays whole, the temporary file is gone."""
    monkeypatch.setattr(scorefile, "CHUNK_ROWS", 400)
    output = tmp_path / "s.parquet"
    output.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        scorefile.score_file(folder, output, Fares(rows=1500), lambda rows: None)  # type: ignore[arg-type]
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "s.parquet"]


def test_an_output_that_is_the_input_under_another_name_is_refused(tmp_path: Path, folder: Path) -> None:
    """A link to the input is the input."""
    source = folder / "green_tripdata_2023-01.parquet"
    link = tmp_path / "link.parquet"
    link.symlink_to(source)
    with pytest.raises(DataError, match="same file"):
        scorefile.check_paths(source, link)
