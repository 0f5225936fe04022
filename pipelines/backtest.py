"""The walk through past months, in a process of its own: what computes stays out of the pipelines."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def backtest(first: str, last: str, data_dir: Path, out: Path, more: Sequence[str]) -> int:
    """Run `python -m fraudlib.backtest` to its end; its exit code.

    Parameters
    ----------
    first, last : months "YYYY-MM", both included. data_dir, out : absolute folders. more : further options of it.
    """
    command = [sys.executable, "-m", "fraudlib.backtest", "--from", first, "--to", last]
    # An interruption ends the child too: subprocess.run kills it when an exception comes through.
    return subprocess.run([*command, "--data-dir", str(data_dir), "--out", str(out), *more]).returncode
