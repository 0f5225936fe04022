"""Reads damaged trip files one after the other and says what became of them: `python -m tests.security.damaged_files`.

In a process of its own with little memory, as the reader's native code is what is tried here.
"""

import json
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fraudlib import paths, trips
from fraudlib.errors import FraudError

SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
MEMORY_BYTES = 6 << 30
ROWS = 40
SPICE = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"NaN",
    b"1e999",
    b"\xff\xfe",
    b"9" * 30,
)


def peak_mib() -> float:
    """Most memory that this program held, in MiB; what getrusage gives begins with the size of whoever started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


def whole_files() -> list[tuple[str, bytes]]:
    """Names and bytes of good files: parquet as the TLC writes it, plain and by dictionary, and CSV."""
    table = pq.read_table(SAMPLE).slice(0, ROWS)
    files = []
    for options in ({}, {"compression": "gzip"}, {"compression": "none", "use_dictionary": False}, {"version": "1.0"}):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **options)
        files.append(("green_tripdata_2023-05.parquet", sink.getvalue().to_pybytes()))
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    files += [("green_tripdata_2023-05.csv", sink.getvalue().to_pybytes())] * 2
    return files


def damage(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four damages; the footer of parquet, where its lengths stand, is hit more often."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw)) if rng.random() < 0.5 else max(0, len(raw) - rng.randint(1, 3000))
        kind = rng.choice(("flip", "flip", "set", "cut", "end", "double", "spice"))
        if kind == "flip":
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == "set":
            raw[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind == "cut":
            del raw[at : at + rng.randint(1, 40)]
        elif kind == "end" and rng.random() < 0.3:
            del raw[at:]
        elif kind == "double":
            raw[at:at] = raw[at : at + rng.randint(1, 40)]
        elif kind == "spice":
            raw[at:at] = rng.choice(SPICE)
        if not raw:
            break
    return bytes(raw)


def main(seed: int, count: int) -> None:
    """Damage and read `count` files; prints one JSON object."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    rng, files = random.Random(seed), whole_files()
    read = refused = 0
    slowest, silent = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            name, data = rng.choice(files)
            path = Path(folder, name)
            path.write_bytes(damage(data, rng))
            print(number, file=sys.stderr, flush=True)
            started = time.process_time()
            try:
                table = trips.read(path)
                assert table.schema.equals(trips.TRIPS_SCHEMA)
                trips.to_columns(table)
                read += 1
            except FraudError as err:
                refused += 1
                if path.name not in str(err) or len(str(err)) > 2000:
                    silent.append(str(err)[:300])
            slowest = max(slowest, time.process_time() - started)
            path.unlink()
    peak = peak_mib()
    print(json.dumps({"read": read, "refused": refused, "slowest_s": slowest, "peak_mib": peak, "silent": silent}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
