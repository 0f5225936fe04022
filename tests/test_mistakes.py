"""Mistakes at the command line: one sentence, the right exit code, no traceback; and the help that prevents them."""

import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fraudlib import cli as fraudlib_module
from fraudlib import paths
from fraudlib.cli import cli
from fraudlib.cli import main as fraudlib_main
from fraudlib.worker import main as worker
from fraudlib.worker.watchdog import EXIT_BLOCKED, EXIT_NOT_DRAINED
from pipelines import __main__ as pipelines_module
from pipelines.__main__ import main as pipelines_group
from pipelines.__main__ import run as pipelines_main

PAGE = (paths.root() / "docs" / "cli.md").read_text()
SAMPLE = "data/sample/green_tripdata_2023-05.parquet"


def commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    """Every command of a program by its full name, groups left out."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def examples(shown: str) -> list[str]:
    """Lines of a help's examples."""
    found = re.search(r"Examples?:\n((?:  +\S.*\n)+)", shown)
    return [line.strip() for line in found[1].splitlines()] if found else []


EVERY = [*commands(cli, "fraudlib"), *commands(pipelines_group, "python -m pipelines")]


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_is_described(name: str, command: click.Command) -> None:
    """docs/cli.md has it, and its help shows an example of it."""
    assert f"| `{name}` |" in PAGE
    shown = CliRunner().invoke(command, ["--help"]).output
    assert name in shown
    lines = examples(shown)
    assert lines, shown
    assert all(line in PAGE.splitlines() for line in lines)


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_json_is_where_the_page_says(name: str, command: click.Command) -> None:
    """A command has --json if, and only if, docs/cli.md says so."""
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    has_json = any("--json" in option.opts for option in command.params)
    assert has_json == row.split("|")[3].strip().startswith("yes")


def test_no_command_is_made_up() -> None:
    """What docs/cli.md lists is there."""
    assert set(re.findall(r"^\| `((?:fraudlib|python -m)[\w -]+)` \|", PAGE, re.MULTILINE)) == {n for n, _ in EVERY}


def end(
    program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code of a command, and what it printed on stderr."""
    run, name = {"fraudlib": (fraudlib_main, "fraudlib"), "pipelines": (pipelines_main, "pipelines")}[program]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    return int(ended.value.code or 0), capfd.readouterr().err


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        ("fraudlib", ["score", "no-such-file.parquet", "{tmp}/out.parquet"], "does not exist"),
        ("fraudlib", ["score", "README.md", "{tmp}/out.parquet"], "parquet"),
        ("fraudlib", ["score", SAMPLE, "{tmp}/no/such/folder/out.parquet"], "folder"),
        ("fraudlib", ["score", SAMPLE, "{tmp}/out.parquet", "--bundle", "notebooks"], "manifest.json"),
        ("fraudlib", ["replay", SAMPLE, "--to", "not-an-address"], "http://127.0.0.1:8000"),
        ("fraudlib", ["replay", SAMPLE, "--to", "http://127.0.0.1:9", "--limit", "1"], "fraudlib api"),
        ("fraudlib", ["replay", SAMPLE, "--to", "http://127.0.0.1:http"], "http://127.0.0.1:8000"),
        ("fraudlib", ["replay", SAMPLE, "--fraud", "2"], "--fraud"),
        ("fraudlib", ["score", "{tmp}/people.csv", "{tmp}/out.parquet"], "pickup_datetime"),
        ("fraudlib", ["dlq", "list", "--since", "yesterday"], "2026-01-31T03:00:00"),
        ("fraudlib", ["api-key", "a b"], "a b"),
        ("pipelines", ["keygen", "{tmp}/no/such/folder/key"], "folder"),
        ("pipelines", ["shadow"], "--off"),
        ("pipelines", ["backtest", "--from", "2022-01", "--to", "2022-03", "--data-dir", "{tmp}"], "{tmp}"),
        ("fraudlib", ["demo", "--port", "{busy}"], "cannot be used"),
        ("fraudlib", ["scor"], "scor"),
        ("pipelines", ["retrain", "-p", "colour=red"], "colour"),
        ("pipelines", ["retrain", "-p", "epochs=many"], "epochs"),
        ("pipelines", ["retrain", "-p", "epochs"], "epochs"),
        ("pipelines", ["retrain", "--params", "no-such.yaml"], "does not exist"),
        ("pipelines", ["retrain", "--resume", "20260101T000000Z-none", "--runs", "{tmp}"], "20260101T000000Z-none"),
        ("pipelines", ["schedule", "--cron", "every monday"], "cron"),
        ("pipelines", ["schedule", "--cron", "0 3 * * 1", "--timezone", "Mars/Olympus"], "Mars/Olympus"),
        ("pipelines", ["promote", "no-such-bundle", "--artifacts", "{tmp}"], "no-such-bundle"),
        ("pipelines", ["promote", "../escape", "--artifacts", "{tmp}"], "escape"),
        ("pipelines", ["rollback", "--artifacts", "{tmp}"], "{tmp}"),
        ("pipelines", ["history", "no-such-bundle", "--artifacts", "{tmp}", "--runs", "{tmp}"], "no-such-bundle"),
        ("pipelines", ["backtest", "--from", "2023-13", "--to", "2023-06"], "2023-13"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    program: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The sentence names what was wrong, the exit code is 1 or 2, and no traceback is shown."""
    monkeypatch.chdir(paths.root())
    (tmp_path / "people.csv").write_text("name,age\nAnn,7\n")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        fill = {"{tmp}": str(tmp_path), "{busy}": str(busy.getsockname()[1])}
        for mark, value in fill.items():
            arguments = [argument.replace(mark, value) for argument in arguments]
            says = says.replace(mark, value)
        code, said = end(program, arguments, monkeypatch, capfd)
    assert code in (1, 2), said
    assert says in said
    assert_is_a_sentence(said)


def assert_is_a_sentence(said: str) -> None:
    """One line, after the lines that click puts before wrong usage."""
    assert "Traceback" not in said
    lines = said.splitlines()
    assert len(lines) == 1 or (lines[0].startswith("Usage: ") and lines[-1].startswith("Error: ")), said


@pytest.mark.parametrize(
    ("setting", "value", "program", "arguments", "says"),
    [
        (
            "KAFKA_BOOTSTRAP_SERVERS",
            "127.0.0.1:9",
            "fraudlib",
            ["labels", "export", "{tmp}/l.jsonl"],
            "fraudlib broker",
        ),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9", "fraudlib", ["replay", SAMPLE, "--topic"], "fraudlib broker"),
        ("API_PORT", "99999", "fraudlib", ["replay", SAMPLE], "FRAUDLIB_API_PORT"),
        ("BROKER_PORT", "many", "pipelines", ["history"], "FRAUDLIB_BROKER_PORT"),
        ("SIGNING_KEY_FILE", "", "pipelines", ["sign", "no-such-bundle"], "keygen"),
    ],
)
def test_a_wrong_setting_is_answered_in_a_sentence(
    setting: str,
    value: str,
    program: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What a setting leads to, a broker that is down among it, is one sentence too."""
    monkeypatch.chdir(paths.root())
    monkeypatch.setenv(f"FRAUDLIB_{setting}", value)
    if not value:
        monkeypatch.delenv(f"FRAUDLIB_{setting}")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    code, said = end(program, arguments, monkeypatch, capfd)
    assert code in (1, 2), said
    assert says in said
    assert_is_a_sentence(said)


@pytest.mark.parametrize(
    ("setting", "value", "arguments", "says"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9", ["dlq", "list"], "fraudlib broker"),
        ("BROKER_PORT", "{busy}", ["broker"], "FRAUDLIB_BROKER_PORT"),
        ("DASK_ADDRESS", "nowhere", ["score", SAMPLE, "{tmp}/out.parquet", "--engine", "dask"], "dask scheduler"),
    ],
)
def test_no_library_speaks_beside_the_sentence(
    setting: str, value: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    """In a process of its own, where nothing catches what libraries log or what is raised on the way out."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        value = value.replace("{busy}", str(busy.getsockname()[1]))
        command = [sys.executable, "-m", "fraudlib.cli", *(word.replace("{tmp}", str(tmp_path)) for word in arguments)]
        environment = os.environ | {f"FRAUDLIB_{setting}": value}
        done = subprocess.run(
            command, env=environment, cwd=paths.root(), capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert_is_a_sentence(done.stderr)


def test_a_run_beside_another_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3: nothing runs while another run holds the artifacts."""
    monkeypatch.chdir(paths.root())
    with (tmp_path / ".retrain.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = ["retrain", "--artifacts", str(tmp_path), "--runs", str(tmp_path / "runs")]
        code, said = end("pipelines", arguments, monkeypatch, capfd)
    assert code == 3
    assert "another run" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("program", ["fraudlib", "pipelines"])
def test_an_interruption_has_its_code(
    program: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 130, in a word."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "invoke", interrupted)
    code, said = end(program, ["history"], monkeypatch, capfd)
    assert code == 130
    assert said.strip().endswith("interrupted")


def test_the_exit_codes_of_the_page_exist() -> None:
    """docs/cli.md and docs/worker.md have the codes that the programs end with, no more and no fewer."""
    rows = [line.split("|") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    for column, module in ((2, fraudlib_module), (3, pipelines_module)):
        documented = {int(row[1]) for row in rows if row[column].strip()}
        assert documented == {0} | {code for name, code in vars(module).items() if name.startswith("EXIT_")}
    page = (paths.root() / "docs" / "worker.md").read_text()
    codes = {code for name, code in vars(worker).items() if name.startswith("EXIT_")} | {EXIT_NOT_DRAINED, EXIT_BLOCKED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes | {0}
