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
from fraudlib.errors import DataError
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


def varint(number: int) -> bytes:
    """Number as Thrift's compact protocol writes it."""
    zigzag, out = 2 * number, bytearray()
    while zigzag > 127:
        out.append(zigzag & 127 | 128)
        zigzag >>= 7
    return bytes([*out, zigzag])


def test_a_page_of_a_small_file_cannot_claim_memory(tmp_path: Path) -> None:
    """A header that promises two gibibytes is refused without asking for them."""
    path = tmp_path / "green_tripdata_2023-05.parquet"
    pq.write_table(pq.read_table(SAMPLE).slice(0, 40), path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    # The first page's header: its kind, its size and its size as compressed, each a field (0x15) of one number.
    end_of = [place for place in range(5, 20) if data[place] < 128][:5]
    kind, size, compressed = end_of[0], end_of[2], end_of[4]
    assert data[4] == data[kind + 1] == data[size + 1] == 0x15
    path.write_bytes(data[: size + 2] + varint(2**31 - 40) + data[compressed + 1 :])
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DataError, match=path.name):
        trips.read(path)
    assert pa.default_memory_pool().max_memory() < max(before, 256 << 20)
