"""Documentation: what it names is there."""

import re
from pathlib import Path

import pytest

from fraudlib import paths
from fraudlib.fraud import KINDS
from fraudlib.schema import COLUMNS

ROOT = paths.root()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_exist(page: Path) -> None:
    """A page or file of the project that the text names is in the project."""
    named = set(re.findall(r"`((?:docs|data/sample|notebooks|pipelines|tests)/[\w./-]+)`", page.read_text()))
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to another page, picture or heading of the project leads to one."""
    broken = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


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
