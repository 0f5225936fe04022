"""Documentation: what it names is there."""

import re
from pathlib import Path

import pytest

from fraudlib import paths
from fraudlib.fraud import KINDS
from fraudlib.schema import COLUMNS

ROOT = paths.root()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    """A page or file of the project that the text names is in the project."""
    named = set(re.findall(r"`((?:docs|data/sample|notebooks|pipelines|tests)/[\w./-]+)`", page.read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_column_and_kind_is_described() -> None:
    """docs/data.md has each column, docs/fraud-kinds.md each kind with its source."""
    data, kinds = ((ROOT / "docs" / name).read_text() for name in ("data.md", "fraud-kinds.md"))
    assert all(f"| `{column.name}` |" in data for column in COLUMNS)
    assert all(f"| `{name}` |" in kinds and kind.source in kinds for name, kind in KINDS.items())


def test_readme_commands_exist() -> None:
    """Every make target, fraudlib command and pipelines command that the README shows is one."""
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", text, re.MULTILINE)):
        assert f"\n{target}:" in makefile
    cli, clock = (ROOT / "fraudlib" / "cli.py").read_text(), (ROOT / "pipelines" / "__main__.py").read_text()
    for command in set(re.findall(r"^fraudlib (\w+)", text, re.MULTILINE)):
        assert f"def {command}" in cli, command
    for command in set(re.findall(r"^python -m pipelines (\w+)", text, re.MULTILINE)):
        assert f"def {command}" in clock, command
