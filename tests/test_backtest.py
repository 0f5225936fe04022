"""The walk through past months uses no month before its time, and says what it found."""

import csv
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraudlib import simulate
from fraudlib.backtest import ARMS, Step, between, main, plan
from fraudlib.errors import DataError, ParameterError

MONTHS = ("2023-02", "2023-03", "2023-04", "2023-05")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small simulated months."""
    out = tmp_path_factory.mktemp("months")
    for seed, month in enumerate(MONTHS):
        simulate.write(simulate.simulate_month(month, "green", 1500, seed), out / f"green_tripdata_{month}.parquet")
    return out


def test_no_month_is_known_before_its_time() -> None:
    """With a wait of two months the model of May knows March at most; gaps count by the calendar."""
    steps = plan(["2022-11", "2022-12", "2023-02", "2023-03", "2023-05"], 1, 1)
    assert steps == [
        Step(("2022-11",), "2022-12", "2023-02"),
        Step(("2022-11",), "2022-12", "2023-03"),
        Step(("2023-02",), "2023-03", "2023-05"),
    ]


def test_too_few_months_are_refused() -> None:
    """Nothing to test is an error that says what to change, and so is a month that is none."""
    with pytest.raises(DataError, match="lower --train-months"):
        plan(["2023-01", "2023-02"], 1, 1)
    with pytest.raises(ParameterError, match="2023-13"):
        between(MONTHS, "2023-01", "2023-13")


def test_both_arms_in_table_and_figure(folder: Path, tmp_path: Path) -> None:
    """A walk over real files: a row for each month and arm, the same ones printed, in CSV and in parquet."""
    options = ("--train-months", "1", "--wait-months", "0", "--max-rows", "1000", "--epochs", "1")
    places = ("--from", "2023-02", "--to", "2023-05", "--data-dir", str(folder), "--out", str(tmp_path))
    done = CliRunner().invoke(main, [*places, *options])
    assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "backtest.parquet").to_pylist()
    assert [(row["test"], row["arm"]) for row in rows] == [(m, arm) for m in MONTHS[2:] for arm in ARMS]
    assert [row["trained_on"] for row in rows] == ["2023-02", "2023-02", "2023-03", "2023-02"]
    assert rows[0]["average_precision"] == rows[1]["average_precision"]  # one model, before anything is stale
    assert rows[2]["average_precision"] != rows[3]["average_precision"]
    assert all(0 <= row["false_positive_rate"] < 1 and row["alerts_per_day"] >= 0 for row in rows)
    with (tmp_path / "backtest.csv").open() as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [row["arm"] for row in rows]
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    assert (tmp_path / "backtest.png").read_bytes().startswith(b"\x89PNG")


def test_an_error_of_the_walk_is_one_of_the_command(folder: Path, tmp_path: Path) -> None:
    """Too few months end with exit code 1 and one sentence, and leave no table behind."""
    command = [sys.executable, "-m", "pipelines", "backtest", "--from", "2023-04", "--to", "2023-05"]
    places = ["--data-dir", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *places, "--max-rows", "2000"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected 2 months to train on" in done.stderr
    assert not (tmp_path / "out").exists()
