"""The notebooks as people find them: anatomy, parameters, outputs and size."""

import ast
from pathlib import Path

import nbformat
import pytest

from fraudlib import paths

NOTEBOOKS = sorted((paths.root() / "notebooks").glob("0[0-6]_*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_line_is_there() -> None:
    """Explore, prepare, train, tune and evaluate, in order."""
    line = ["00_explore", "01_prepare", "02_train", "03_tune", "04_evaluate"]
    assert [path.stem for path in NOTEBOOKS][:5] == line


@each
def test_parameters_are_typed_literals_with_help(path: Path) -> None:
    """One tagged cell of typed literals, each with a comment that papermill shows as help."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", [])]
    lines = [line for line in cell.source.splitlines() if line and not line.startswith("#")]
    for node, line in zip(ast.parse(cell.source).body, lines, strict=True):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
        assert "  # " in line, line


@each
def test_a_story_of_moderate_length(path: Path) -> None:
    """Starts with a title, 20 to 30 cells, no cell over 25 lines of code, no classes, magics or path tricks."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert 20 <= len(notebook.cells) <= 30
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 25
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(cell.source)))
        assert "sys.path" not in cell.source
        assert "filterwarnings" not in cell.source


@each
def test_outputs_are_kept_and_clean(path: Path) -> None:
    """Every code cell was run in order without error or warning, and the file stays small."""
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert path.stat().st_size < 300_000


@each
def test_figures_say_what_they_are_from(path: Path) -> None:
    """The kept outputs name the simulated sample, and hold figures."""
    text = path.read_text()
    assert "simulated sample" in text
    assert '"image/png"' in text


@each
def test_every_parameter_is_used(path: Path) -> None:
    """A parameter that no other cell reads would promise what it does not do."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", [])]
    declared = {node.target.id for node in ast.parse(cell.source).body}
    others = [ast.parse(c.source) for c in code(notebook) if c is not cell]
    read = {node.id for tree in others for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert declared - read == set()


@each
def test_imports_come_first_and_stay_in_the_house(path: Path) -> None:
    """Libraries and fraudlib alone, never another notebook or the pipelines."""
    trees = [ast.parse(cell.source) for cell in code(nbformat.read(path, as_version=4))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    allowed = {"fraudlib", "matplotlib", "numpy", "pandas", "torch", "IPython", "ipywidgets", "platform"}
    assert {name.split(".")[0] for name in names} <= allowed


@each
def test_loaded_data_is_compared(path: Path) -> None:
    """The cell that shows what was loaded is compared with its kept output, the one of versions is not."""
    tags = [cell.metadata.get("tags", []) for cell in code(nbformat.read(path, as_version=4))]
    assert sum("nbval-check-output" in t for t in tags) == 1
    assert "nbval-ignore-output" in tags[-1]
