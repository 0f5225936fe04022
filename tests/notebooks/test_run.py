"""The four notebooks on the sample: what they write, what they seal, and when they refuse."""

import json
import shutil
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from fraudlib import bundle, paths

NOTEBOOKS = paths.root() / "notebooks"
QUICK = {"epochs": 6, "head_rounds": 2, "head_epochs": 3}
LENIENT = {"min_average_precision": 0.3, "min_easy_recall": 0.1}


def run(name: str, out: Path, **parameters: object) -> None:
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        out / f"{name}.ipynb",
        parameters=parameters,
        cwd=NOTEBOOKS,
        progress_bar=False,
        kernel_name="python3",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 01 to 04 with a short training."""
    folder = tmp_path_factory.mktemp("run")
    run("01_prepare", folder, run_dir=str(folder))
    run("02_train", folder, run_dir=str(folder), **QUICK)
    run("03_tune", folder, run_dir=str(folder))
    run("04_evaluate", folder, run_dir=str(folder), artifacts_dir=str(folder / "artifacts"), **LENIENT)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_each_stage_writes_its_files(finished: Path) -> None:
    """Every file that paths.RunPaths names is there, and the data is labelled as simulated."""
    run_paths = paths.RunPaths.at(finished)
    for path in (
        run_paths.data,
        run_paths.statistics,
        run_paths.model,
        run_paths.threshold,
        run_paths.metrics,
        run_paths.gate,
    ):
        assert path.stat().st_size > 0, path
    assert json.loads(run_paths.data.read_text())["simulated"] is True


@pytest.mark.filterwarnings("ignore")
def test_the_sealed_bundle_loads(finished: Path) -> None:
    """04 seals a bundle that verifies; it is not live until someone promotes it."""
    gate = json.loads((finished / "gate.json").read_text())
    assert gate["passed"] is True
    loaded = bundle.load(finished / "artifacts" / gate["bundle_id"])
    assert loaded.manifest.metrics["average_precision"]["value"] > 0.3
    assert not (finished / "artifacts" / "current").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_below_the_gate_is_not_sealed(finished: Path, tmp_path: Path) -> None:
    """Asked for the impossible, 04 fails with the reason, says so in gate.json, and seals nothing."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    with pytest.raises(PapermillExecutionError, match="average precision"):
        run("04_evaluate", tmp_path, run_dir=str(copy), artifacts_dir=str(tmp_path / "a"), min_average_precision=0.999)
    assert json.loads((copy / "gate.json").read_text())["passed"] is False
    assert not list((tmp_path / "a").glob("*/manifest.json"))


@pytest.mark.filterwarnings("ignore")
def test_what_was_sealed_is_monitored(finished: Path, tmp_path: Path) -> None:
    """06 scores the months once, with the bundle that is live, and says whether a retraining is due."""
    artifacts = tmp_path / "artifacts"
    shutil.copytree(finished / "artifacts", artifacts)
    (artifacts / "current").write_text(json.loads((finished / "gate.json").read_text())["bundle_id"])
    run("06_monitor", tmp_path, artifacts_dir=str(artifacts), scores_dir=str(tmp_path / "scores"), max_age_days=1)
    text = (tmp_path / "06_monitor.ipynb").read_text()
    assert "retrain, because of: " in text
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["green_tripdata_2023-05.parquet"]
