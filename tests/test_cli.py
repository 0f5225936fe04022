"""The command line: what it offers, and one sentence with the right exit code for each mistake."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraudlib import __version__, cli, paths, trips
from fraudlib.manifest import current_bundle
from fraudlib.scoring import Scorer

COMMANDS = ("api", "broker", "demo", "replay", "score", "worker")
SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
ARTIFACTS = paths.root() / "artifacts"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `fraudlib ...` in this process; exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fraudlib", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def trips_file(tmp_path: Path) -> Path:
    """Three hundred simulated trips as a file of their own."""
    path = tmp_path / "in" / "green_tripdata_2023-05.parquet"
    path.parent.mkdir()
    pq.write_table(pq.read_table(SAMPLE).slice(1000, 300), path)
    return path


def test_help_shows_every_command_with_examples_and_exit_codes(run: Run) -> None:
    """`fraudlib --help` is enough to find one's way."""
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert "Examples:" in out
    assert "Exit codes:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(run: Run, command: str) -> None:
    """`fraudlib COMMAND --help` shows a line that can be copied."""
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Example" in out
    assert f"fraudlib {command}" in out


def test_version(run: Run) -> None:
    """`fraudlib --version` prints name and version."""
    assert run("--version")[:2] == (0, f"fraudlib {__version__}\n")


def test_help_loads_nothing_heavy() -> None:
    """The entry is quick: no torch, pandas, pyarrow, FastAPI or settings before a command needs them."""
    code = "import sys, fraudlib.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "pandas", "pyarrow", "numpy", "fastapi", "aiokafka", "pydantic"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_installed_command_reports_a_missing_input(tmp_path: Path) -> None:
    """From outside: no traceback, the name of the file, exit code 2, nothing written."""
    program = str(Path(sys.executable).with_name("fraudlib"))
    command = [program, "score", "no-such-file.parquet", str(tmp_path / "x.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no-such-file.parquet" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scores"], "No such command 'scores'"),
        (["score", "{trips}"], "Missing argument 'OUTPUT'"),
        (["replay", "{trips}", "--rate", "-1"], "-1.0 is not in the range"),
        (["replay", "{trips}", "--rate", "fast"], "'fast' is not a valid float"),
        (["replay", "{trips}", "--topic", "--to", "http://127.0.0.1:1"], "give one of them"),
        (["demo", "--seconds", "0"], "0.0 is not in the range"),
        (["demo", "--port", "70000"], "70000 is not in the range"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, trips_file: Path, arguments: list[str], words: str) -> None:
    """A wrong word on the command line is named, with exit code 2."""
    code, _, err = run(*(argument.format(trips=trips_file) for argument in arguments))
    assert code == 2
    assert words in err


@pytest.mark.parametrize("command", ["api", "broker", "worker", "demo"])
def test_a_wrong_setting_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A FRAUDLIB_* variable that cannot be is named with what was found, before anything starts."""
    monkeypatch.setenv("FRAUDLIB_BROKER_PORT", "many")
    code, _, err = run(command)
    assert code == 2
    assert "FRAUDLIB_BROKER_PORT" in err
    assert "'many'" in err
    assert len(err.splitlines()) == 1


def _mistake(case: str, folder: Path, trips_file: Path) -> tuple[list[object], str]:
    """Arguments of `score` that are a mistake, and words of the sentence that says so."""
    output = folder / "scores.parquet"
    strange = folder / "strange.parquet"
    pq.write_table(pa.table({"fare_amount": [1.0], "colour": ["blue"]}), strange)
    empty = folder / "empty.csv"
    empty.touch()
    bare = folder / "green_tripdata_2023-06.parquet"
    pq.write_table(pq.read_table(trips_file).slice(0, 0), bare)
    cut = folder / "cut.parquet"
    cut.write_bytes(trips_file.read_bytes()[:5000])
    mistakes: dict[str, tuple[list[object], str]] = {
        "not trips": ([strange, output], "pickup_datetime"),
        "empty file": ([empty, output], "empty"),
        "no rows": ([bare, output], "without rows"),
        "truncated": ([cut, output], "truncated"),
        "same file": ([trips_file, trips_file], "same file"),
        "inside the input": ([trips_file.parent, trips_file.parent / "s.parquet"], "inside the input folder"),
        "folder as output": ([trips_file, folder], "found a folder"),
        "no such folder": ([trips_file, folder / "no" / "s.parquet"], "does not exist"),
        "no bundle": ([trips_file, output], "python -m pipelines retrain"),
        "no manifest": ([trips_file, output, "--bundle", folder], "manifest.json"),
    }
    return mistakes[case]


@pytest.mark.parametrize(
    "case",
    [
        "not trips",
        "empty file",
        "no rows",
        "truncated",
        "same file",
        "inside the input",
        "folder as output",
        "no such folder",
        "no bundle",
        "no manifest",
    ],
)
def test_score_says_what_is_wrong_and_writes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trips_file: Path, case: str
) -> None:
    """Each mistake gets one sentence and exit code 1; every file is as before."""
    arguments, words = _mistake(case, tmp_path, trips_file)
    monkeypatch.setenv("FRAUDLIB_ARTIFACTS_DIR", str(tmp_path if case == "no bundle" else ARTIFACTS))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = run("score", *arguments)
    assert code == 1, err
    assert words in err
    assert err.startswith("fraudlib: ")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_score_gives_every_row_its_score_in_order(run: Run, tmp_path: Path, trips_file: Path) -> None:
    """The output is what the scorer says about the same rows, in the order of the input, with reasons in words."""
    output = tmp_path / "scores.parquet"
    code, out, _ = run("score", trips_file, output)
    assert code == 0
    table = pq.read_table(output)
    bundle = current_bundle(ARTIFACTS)
    assert bundle is not None
    scorer = Scorer.load(bundle)
    expected = scorer.score(trips.to_columns(trips.read(trips_file)))
    assert table["row"].to_pylist() == list(range(300))
    np.testing.assert_allclose(table["anomaly_score"].to_numpy(), expected.anomaly_score, atol=1e-4)
    assert set(table["threshold"].to_pylist()) == {scorer.threshold}
    assert table["is_flagged"].to_pylist() == expected.is_flagged.tolist()
    flagged = table.filter(table["is_flagged"])
    assert flagged["reason_1"].null_count == 0
    assert table.filter(pa.compute.invert(table["is_flagged"]))["reason_1"].null_count == 300 - len(flagged)
    assert "300 simulated trips scored" in out
    assert scorer.bundle_id in out


def test_score_speaks_json_and_replaces_an_older_output(run: Run, tmp_path: Path, trips_file: Path) -> None:
    """--json prints one object; an output that is there is replaced, and no temporary file stays."""
    output = tmp_path / "scores.parquet"
    output.write_bytes(b"old")
    code, out, _ = run("score", trips_file, output, "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["rows"] == pq.read_metadata(output).num_rows == 300
    assert summary["simulated"] is True
    assert {"flagged", "share", "seconds", "rows_per_second", "bundle_id"} <= set(summary)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "scores.parquet"]


def test_sigterm_handlers_are_restored(run: Run, tmp_path: Path, trips_file: Path) -> None:
    """Scoring from Python leaves the process's signal handling as it was."""
    before = signal.getsignal(signal.SIGTERM)
    run("score", trips_file, tmp_path / "scores.parquet")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_is_a_sentence(run: Run, trips_file: Path) -> None:
    """An error of the operating system is one sentence with the name of the file, not a traceback."""
    code, _, err = run("score", trips_file, Path("/proc/scores.parquet"))
    assert code == 1
    assert "/proc/scores.parquet" in err
    assert len(err.splitlines()) == 1
