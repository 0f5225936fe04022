"""Trip files that are damaged: each is read or refused with a reason, quickly and in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraudlib import paths, trips
from tests.security.damaged_files import SAMPLE


def read_damaged(seed: int, count: int, seconds: float) -> dict[str, float]:
    """What became of so many damaged files; a crash, a hang and an error of another kind end it."""
    command = [sys.executable, "-m", "tests.security.damaged_files", str(seed), str(count)]
    result = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, timeout=seconds, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, float] = json.loads(result.stdout)
    assert found["read"] + found["refused"] == count
    assert found["silent"] == []
    assert found["slowest_s"] < 2
    assert not found["peak_mib"] >= 1000  # not known everywhere
    return found


def test_damaged_files_are_read_or_refused_with_a_reason() -> None:
    """A thousand parquet and CSV files: no crash, no hang, no memory, and each refusal names the file."""
    found = read_damaged(seed=1, count=1000, seconds=120)
    assert found["read"] > 20
    assert found["refused"] > 500


@pytest.mark.fuzz
def test_many_more_damaged_files() -> None:
    """The same with a hundred thousand, others each time."""
    read_damaged(seed=np.random.default_rng().integers(1 << 31).item(), count=100_000, seconds=3600)


def test_a_whole_number_beyond_a_double_is_data(tmp_path: Path) -> None:
    """A count of 2**55 + 2 passengers is strange and is scored, rounded, rather than stopping the file."""
    table = pq.read_table(SAMPLE).slice(0, 3)
    place = table.schema.get_field_index("passenger_count")
    table = table.set_column(place, "passenger_count", pa.array([2**55 + 2, 1, None], pa.int64()))
    path = tmp_path / "green_tripdata_2023-05.parquet"
    pq.write_table(table, path)
    counts = trips.to_columns(trips.read(path))["passenger_count"]
    assert counts[0] == float(2**55)
    assert counts[1] == 1.0
    assert np.isnan(counts[2])
