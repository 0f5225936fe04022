"""Which room may know what: the contracts of pyproject.toml hold, and would catch what they forbid."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from fraudlib import paths

ROOT = paths.root()
GROUND_FLOOR = ("errors", "schema", "settings", "paths", "manifest")
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
NOTEBOOK_LIBRARIES = {
    "fraudlib",
    "IPython",
    "ipywidgets",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "sklearn",
    "torch",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """lint-imports on the packages in `folder`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": "."}, check=False)


def imported(source: str) -> set[str]:
    """Dotted names that Python source imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_contracts_hold() -> None:
    """No room imports what it must not know."""
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "wall"),
    [
        ("fraudlib/manifest.py", "import numpy", "The ground floor"),
        ("fraudlib/settings.py", "from fraudlib import trips", "The ground floor"),
        ("fraudlib/tariff.py", "import pandas", "Tariffs"),
        ("fraudlib/features.py", "import torch", "Features and fraud"),
        ("fraudlib/fraud.py", "import urllib.request", "Features and fraud"),
        ("fraudlib/api/app.py", "import torch", "The API"),
        ("fraudlib/api/app.py", "from fraudlib import features", "The API"),
        ("fraudlib/worker/main.py", "import fastapi", "The worker"),
        ("fraudlib/worker/main.py", "from fraudlib import training", "The worker"),
        ("fraudlib/cli.py", "import papermill", "The library"),
        ("pipelines/retrain.py", "from fraudlib import scoring", "Pipelines"),
        ("pipelines/retrain.py", "import pandas", "Pipelines"),
    ],
)
def test_a_forbidden_import_breaks_its_wall(tmp_path: Path, module: str, line: str, wall: str) -> None:
    """Each contract names the wall that one wrong import would break."""
    for package in ("fraudlib", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert [name for name in result.stdout.splitlines() if name.startswith(wall) and "BROKEN" in name]


@pytest.mark.parametrize("room", GROUND_FLOOR)
def test_the_ground_floor_knows_only_itself(room: str) -> None:
    """Standard library, pydantic and its neighbours: an allow-list, where the contract can only forbid."""
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_settings"}
    for name in imported((ROOT / "fraudlib" / f"{room}.py").read_text()):
        package, _, rest = name.partition(".")
        assert package in allowed or (package == "fraudlib" and rest.split(".")[0] in GROUND_FLOOR), name


def test_the_api_starts_without_the_model() -> None:
    """A fresh interpreter that imports the API loads no torch, pandas or scikit-learn, so it starts fast."""
    heavy = ["torch", "pandas", "sklearn", "scipy", "pyarrow", "matplotlib", "fraudlib.features", "fraudlib.scoring"]
    code = f"import sys, json, fraudlib.api.app; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_the_library_and_never_each_other(path: Path) -> None:
    """A notebook can be read and run alone: no %run, no !pip, no path tricks, no library that is not listed."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    source = "\n".join(TransformerManager().transform_cell("".join(cell["source"])) for cell in cells)
    packages = {name.partition(".")[0] for name in imported(source)}
    assert packages <= NOTEBOOK_LIBRARIES | sys.stdlib_module_names
    for trick in ("sys.path", "run_line_magic('run'", "get_ipython().system", "run_line_magic('pip'", "filterwarnings"):
        assert trick not in source
