"""Mistakes at the command line: one sentence, the right exit code, no traceback; and the help that prevents them."""

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fraudlib import paths
from fraudlib.cli import cli
from fraudlib.cli import main as fraudlib_main
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


EVERY = [*commands(cli, "fraudlib"), *commands(pipelines_group, "python -m pipelines")]


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_is_described(name: str, command: click.Command) -> None:
    """docs/cli.md has it, and its help shows an example of it."""
    assert f"| `{name}` |" in PAGE
    shown = CliRunner().invoke(command, ["--help"]).output
    assert re.search(r"Examples?:", shown), shown
    assert name in shown


def test_no_command_is_made_up() -> None:
    """What docs/cli.md lists is there."""
    assert set(re.findall(r"^\| `((?:fraudlib|python -m)[\w -]+)` \|", PAGE, re.MULTILINE)) == {n for n, _ in EVERY}


def mistake(
    program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """What a wrong command prints on stderr, once its exit code is 1 or 2 and it shows no traceback."""
    run, name = {"fraudlib": (fraudlib_main, "fraudlib"), "pipelines": (pipelines_main, "pipelines")}[program]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    said = capfd.readouterr().err
    assert ended.value.code in (1, 2), said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        ("fraudlib", ["score", "no-such-file.parquet", "{tmp}/out.parquet"], "does not exist"),
        ("fraudlib", ["score", "README.md", "{tmp}/out.parquet"], "parquet"),
        ("fraudlib", ["score", SAMPLE, "{tmp}/no/such/folder/out.parquet"], "folder"),
        ("fraudlib", ["score", SAMPLE, "{tmp}/out.parquet", "--bundle", "notebooks"], "manifest.json"),
        ("fraudlib", ["replay", SAMPLE, "--to", "not-an-address"], "http://127.0.0.1:8000"),
        ("fraudlib", ["replay", SAMPLE, "--to", "http://127.0.0.1:9", "--limit", "1"], "fraudlib api"),
        ("fraudlib", ["replay", SAMPLE, "--fraud", "2"], "--fraud"),
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
    with socket.create_server(("127.0.0.1", 0)) as busy:
        fill = {"{tmp}": str(tmp_path), "{busy}": str(busy.getsockname()[1])}
        for mark, value in fill.items():
            arguments = [argument.replace(mark, value) for argument in arguments]
            says = says.replace(mark, value)
        assert says in mistake(program, arguments, monkeypatch, capfd)
