"""One list of dependencies, and everything else agrees with it."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import fraudlib
from fraudlib import paths

ROOT = paths.root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    requirement
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    if (requirement := Requirement(text)).name != "fraudlib"
]
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def provided(requirement: Requirement) -> set[str]:
    """The requirement's own name, and what the extras that it asks for bring along."""
    names = {canonicalize_name(requirement.name)}
    for extra in requirement.extras:
        for part in map(Requirement, requires(requirement.name) or []):
            if part.marker and part.marker.evaluate({"extra": extra}) and not part.marker.evaluate({"extra": ""}):
                names.add(canonicalize_name(part.name))
    return names


def third_party(package: str) -> set[str]:
    """Top-level packages outside the standard library that a package of this project imports."""
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"fraudlib", "pipelines"}


@pytest.mark.parametrize("package", ["fraudlib", "pipelines"])
def test_every_import_is_a_declared_dependency(package: str) -> None:
    """Nothing is imported that only happens to be installed."""
    known = set().union(*map(provided, DECLARED))
    providers = packages_distributions()
    missing = {
        name
        for name in third_party(package)
        if not {canonicalize_name(distribution) for distribution in providers.get(name, [])} & known
    }
    assert missing == set()


def test_the_all_extra_has_every_extra() -> None:
    """`pip install .[all]` leaves nothing out but the tools of `make audit` and `make fuzz`, which have heavy needs."""
    (all_of_them,) = map(Requirement, EXTRAS["all"])
    assert all_of_them.extras == EXTRAS.keys() - {"all", "audit"}


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    """constraints.txt names one release of each dependency, and pyproject.toml allows it."""
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_constraints_are_portable() -> None:
    """Exact releases only: no local builds, paths, addresses or editable lines of the machine that wrote them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) == len(PINS)
    assert [name for name, version in PINS.items() if Version(version).local] == []
    assert PINS["torch"] == "2.13.0"


def test_every_pin_takes_the_oldest_python() -> None:
    """No release in constraints.txt asks for a later Python than the project: Debian 12 has 3.11.2."""
    asked = {
        name: found.metadata["Requires-Python"]
        for name, version in PINS.items()
        for found in distributions(name=name)
        if Version(found.version).public == version and found.metadata["Requires-Python"]
    }
    assert asked
    assert {name: text for name, text in asked.items() if not SpecifierSet(text).contains("3.11.0")} == {}


def test_the_conda_environment_adds_nothing_to_the_list() -> None:
    """environment.yml is Python in the supported range, pip, and this project with its pins and all of its extras."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment.keys() == {"name", "channels", "dependencies"}
    assert (environment["name"], environment["channels"]) == ("fraudlib", ["conda-forge"])
    python, pip, project = environment["dependencies"]
    assert (pip, project) == ("pip", {"pip": ["-c constraints.txt", "-e .[all]"]})
    name, _, version = python.partition("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    # conda hands the list to pip as a file beside environment.yml, which both paths count from.
    assert (ROOT / "constraints.txt").exists()
    assert "all" in EXTRAS


def test_every_package_folder_is_shipped() -> None:
    """A folder with modules that setuptools is not told of would be missing from a wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        path.parent.relative_to(ROOT) for name in ("fraudlib", "pipelines") for path in (ROOT / name).rglob("*.py")
    }
    assert {".".join(folder.parts) for folder in folders} == set(listed)


def test_the_version_is_one_that_pip_takes() -> None:
    """`fraudlib.__version__` is what the package is published as."""
    assert str(Version(fraudlib.__version__)) == fraudlib.__version__


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Make in the project's root, unaffected by a make that runs the tests."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env, check=False)


def test_plain_make_lists_the_commands() -> None:
    """A newcomer's first word gets an answer, without installing anything."""
    listed = set(re.findall(r"^  make (\w+) ", make().stdout, re.MULTILINE))
    assert {"demo", "test", "check", "lab", "retrain", "notebooks", "bench", "lock", "clean"} <= listed


def test_a_wrong_python_is_named_before_anything_is_installed(tmp_path: Path) -> None:
    """The message says what is needed, what was found, and what to do."""
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit\nexit 1\n')
    python.chmod(0o755)
    result = make("check", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13, found Python 3.9.1" in result.stderr
    assert not (tmp_path / "venv").exists()
