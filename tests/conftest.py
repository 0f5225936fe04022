"""What several test files share: a clean environment, sealed folders to publish, small notebooks to run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, settings
from nbformat.v4 import new_code_cell, new_notebook

from fraudlib import manifest
from fraudlib.paths import MANIFEST

# A busy machine is no fault of an example. `make fuzz` names another profile.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

Seal = Callable[..., Path]

BUNDLE = "20260101T000000Z-aaaa"
SHARED = """\
run_dir: str = "runs/sample"  # outputs of this run
artifacts_dir: str = "artifacts"  # sealed bundles
seed: int = 7  # one seed for all
"""
STAGES = {
    "01_prepare": (
        'service: str = "green"\nshuffle: bool = False\npause: float = 0.0  # seconds',
        "import json, pathlib, time\n"
        "time.sleep(pause)\n"
        "pathlib.Path(run_dir, 'data.json').write_text(json.dumps([seed, service, shuffle, pathlib.Path.cwd().name]))",
    ),
    "02_train": (
        "rate: float = 0.5\nbreak_it: bool = False",
        "import pathlib\nassert not break_it or pathlib.Path(run_dir, 'mended').exists(), 'loss is\\nnot finite'",
    ),
    "03_tune": ("", "print('tuned')"),
    "04_evaluate": (
        f'passed: bool = True\ndecision: str = "promote"\nbundle: str = "{BUNDLE}"',
        "import json, pathlib\n"
        "run = pathlib.Path(run_dir)\n"
        "(run / 'metrics.json').write_text(json.dumps({'average_precision': 0.5}))\n"
        "gate = {'passed': passed, 'decision': decision if passed else 'reject', 'reason': 'AP 0.50',\n"
        "        'bundle_id': bundle if passed else None}\n"
        "(run / 'gate.json').write_text(json.dumps(gate))\n"
        "assert passed, 'the gate says no'",
    ),
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on FRAUDLIB_* variables of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("FRAUDLIB_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def seal() -> Seal:
    """Seal two small files as a bundle that verifies: `seal(artifacts, "20260101T000000Z-aaaa")` returns its folder."""

    def make(artifacts: Path, bundle_id: str, **changes: object) -> Path:
        folder = artifacts / bundle_id
        folder.mkdir(parents=True)
        for name, content in (("statistics.json", b'{"mean": 2.5}'), ("model.safetensors", bytes(range(64)))):
            (folder / name).write_bytes(content)
        files = {p.name: {"sha256": manifest.sha256(p), "bytes": p.stat().st_size} for p in folder.iterdir()}
        content = {
            "format_version": manifest.FORMAT_VERSION,
            "bundle_id": bundle_id,
            "run_id": f"run-of-{bundle_id}",
            "created_at": manifest.now(),
            "git_commit": "unknown",
            "data": {"simulated": True},
            "parameters": {},
            "libraries": {},
            "features": ["trip_distance"],
            "threshold": {"value": 1.0},
            "metrics": {},
            "files": files,
        }
        (folder / MANIFEST).write_text(json.dumps(content | changes))
        return folder

    return make


def write_notebook(path: Path, declaration: str, body: str) -> None:
    """A notebook of two cells: parameters and body."""
    cells = [new_code_cell(declaration, metadata={"tags": ["parameters"]}), new_code_cell(body)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture(scope="session")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four notebooks, small: 04 claims to have sealed BUNDLE."""
    folder = tmp_path_factory.mktemp("project") / "notebooks"
    folder.mkdir()
    for name, (declaration, body) in STAGES.items():
        write_notebook(folder / f"{name}.ipynb", SHARED + declaration, body)
    return folder
