"""The page of the month- and year-ahead runs: a line a run, and a missing run is named."""

import subprocess
import sys
from pathlib import Path

from fraudlib import parts, paths

PART = {"value": 0.5, "low": 0.4, "high": 0.6}


def finished(folder: Path, test: str) -> Path:
    run = paths.RunPaths.at(folder)
    periods = {"train": "2022-01:2022-02", "valid": "2022-03", "test": test}
    parts.write_json(run.data, {"simulated": False, "splits": {s: {"period": p} for s, p in periods.items()}})
    drift = {"expected": PART, "realised": PART, "factor": 1.25}
    parts.write_json(run.metrics, {"average_precision": PART, "recall_at_fpr": {"0.01": PART}, "drift": drift})
    return folder


def page(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.ahead", *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.root())


def test_a_line_for_each_run(tmp_path: Path) -> None:
    """Periods, precision, promise, what was flagged and how far that is from the budget, run by run."""
    result = page(finished(tmp_path / "a", "2022-04"), finished(tmp_path / "b", "2023-04"))
    lines = [line for line in result.stdout.splitlines() if line.startswith("| 2022-01:2022-02 | 2022-03 |")]
    assert [line.split(" | ")[2] for line in lines] == ["2022-04", "2023-04"]
    assert all(
        line.endswith("| 0.500 [0.400, 0.600] | 50.00% [40.00%, 60.00%] | 50.00% [40.00%, 60.00%] | 1.25 |")
        for line in lines
    )
    assert "real TLC months" in result.stdout


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One sentence with the file that is missing."""
    result = page(tmp_path / "none")
    assert result.returncode == 1
    assert "data.json" in result.stderr
    assert "Traceback" not in result.stderr
