"""Labels are read as given: the last verdict counts, all are kept, and none is taken before its time."""

from pathlib import Path

import orjson
import pandas as pd
import pytest

from fraudlib import labels
from fraudlib.errors import DataError

GIVEN = [
    {"transaction_id": "a", "verdict": "honest", "labeled_at": "2026-01-03T00:00:00Z", "anomaly_score": 2.5},
    {"transaction_id": "a", "verdict": "fraud", "labeled_at": "2026-01-01T00:00:00Z", "anomaly_score": 2.5},
    {"transaction_id": "b", "verdict": "fraud", "labeled_at": "2026-01-02T00:00:00Z", "anomaly_score": 3.5},
]


def write(folder: Path, suffix: str) -> Path:
    """The labels in a file of this kind."""
    path, table = folder / f"labels{suffix}", pd.DataFrame(GIVEN)
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        path.write_bytes(b"\n".join(map(orjson.dumps, GIVEN)))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_the_last_verdict_counts_and_all_are_kept(tmp_path: Path, suffix: str) -> None:
    """A correction wins by its time, whatever its place in the file, and the first verdict stays in the table."""
    read = labels.read(write(tmp_path, suffix))
    assert read.last() == {"a": "honest", "b": "fraud"}
    assert len(read.table) == 3
    reviewed = read.reviewed()
    assert (reviewed["reviewed"], reviewed["fraud"], reviewed["given_again"]) == (2, 1, 1)
    assert reviewed["precision"]["value"] == 0.5
    assert read.above({"low": 2.0, "high": 3.0, "none": 9.0})["high"]["precision"]["value"] == 1.0
    assert read.above({"none": 9.0})["none"]["precision"] is None


def test_no_label_is_taken_before_its_time(tmp_path: Path) -> None:
    """With a delay of a day, a correction of the last day does not count yet, and the verdict before it does."""
    read = labels.read(write(tmp_path, ".jsonl"))
    assert read.known_at("2026-01-03T12:00:00Z", 1.0).last() == {"a": "fraud", "b": "fraud"}
    assert read.known_at("2026-01-03T12:00:00", 30.0).last() == {}
    assert read.known_at("2026-01-04T00:00:00Z", 1.0).last() == {"a": "honest", "b": "fraud"}
    assert labels.none().known_at("2026-01-04", 0).reviewed()["precision"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", "", "parquet"),
        ("labels.jsonl", "{", "expected a file of labels"),
        ("labels.csv", "transaction_id,verdict\na,fraud\n", "no labeled_at"),
        ("labels.csv", "transaction_id,verdict,labeled_at\na,maybe,2026-01-01\n", "'maybe'"),
        ("labels.csv", "transaction_id,verdict,labeled_at\na,fraud,soon\n", "in label 1"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    """One sentence names the file and what is wrong with it."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        labels.read(tmp_path / name)
    with pytest.raises(DataError, match=r"missing\.csv"):
        labels.read(tmp_path / "missing.csv")


def test_a_table_says_where_nobody_has_looked(tmp_path: Path) -> None:
    """Each line shows a precision with its interval, or that nothing was reviewed; without a file there is nothing."""
    read = labels.of_file(str(write(tmp_path, ".csv")), 0.0)
    shown = labels.side_by_side(read.above({"low": 2.0, "none": 9.0}))
    assert shown.loc["low", "precision"].startswith("0.500 [")
    assert shown.loc["none", "precision"] == "nobody has reviewed any"
    assert len(labels.of_file("", 7.0).table) == 0
