"""Peak memory and CPU time of scoring and preparing millions of rows: `python -m bench.memory`; writes docs/scale.json.

The rows are the simulated sample, repeated: what is measured is the machinery, not the scores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from bench.machine import describe
from fraudlib import manifest, paths

SAMPLE: Final = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
MONTHS: Final = 12
NOTEBOOK: Final = "01_prepare"


def write_months(folder: Path, rows: int) -> int:
    """Fill a folder with twelve months of about `rows` rows in all, one row group each; how many it became."""
    sample = pq.read_table(SAMPLE)
    times = -(-rows // (MONTHS * len(sample)))
    for month in range(1, MONTHS + 1):
        path = folder / f"green_tripdata_2022-{month:02}.parquet"
        with pq.ParquetWriter(path, sample.schema) as writer:
            for _ in range(times):
                writer.write_table(sample)
    return MONTHS * times * len(sample)


def run(*command: str, **environment: str) -> dict[str, float]:
    """Run a command: peak resident memory of its largest process (MB), CPU time and wall time (s)."""
    started = os.times().elapsed
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment, cwd=paths.root())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return {
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "wall_s": round(os.times().elapsed - started, 1),
    }


def score(folder: Path, work: Path, *options: str) -> dict[str, float]:
    """`fraudlib score` of the folder."""
    return run(sys.executable, "-m", "fraudlib.cli", "score", str(folder), str(work / "scores.parquet"), *options)


def dask(folder: Path, work: Path) -> dict[str, float]:
    """The same on a Dask cluster with a worker for each core of this machine."""
    return score(folder, work, "--engine", "dask")


def prepare(folder: Path, work: Path) -> dict[str, float]:
    """Notebook 01 with ten months for training and one each for validation and test."""
    periods = {"train_months": "2022-01:2022-10", "valid_month": "2022-11", "test_month": "2022-12"}
    given = {"data_dir": str(folder), "run_dir": str(work / "run"), **periods}
    options = [part for name, value in given.items() for part in ("-p", name, value)]
    notebook = [str(paths.root() / f"notebooks/{NOTEBOOK}.ipynb"), str(work / f"{NOTEBOOK}.ipynb")]
    command = [sys.executable, "-m", "papermill", *notebook, "--cwd", "notebooks", "-k", "python3", *options]
    return run(*command, TQDM_DISABLE="1", JUPYTER_PREFER_ENV_PATH="1")


PARTS: Final[dict[str, Callable[[Path, Path], dict[str, float]]]] = {"score": score, "prepare": prepare, "dask": dask}


def main() -> int:
    """Parse the command line, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; all by default")
    parser.add_argument("--rows", type=int, default=12_000_000, help="rows in all")
    parser.add_argument("--out", type=Path, default=paths.root() / "docs/scale.json", help="file of the results")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_bytes()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "months")
        folder.mkdir()
        rows = write_months(folder, options.rows)
        for part, measure in PARTS.items():
            if options.parts and part not in options.parts:
                continue
            found[part] = {"rows": rows, **measure(folder, Path(name)), "machine": describe()}
            manifest.write_atomic(options.out, json.dumps(found, indent=1).encode())
            print(part, json.dumps(found[part]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
