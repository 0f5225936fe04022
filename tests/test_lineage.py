"""From the bundle that an alert names to the run, parameters, data, code, figures and report."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Seal

from fraudlib.errors import BundleError
from pipelines import registry
from pipelines.__main__ import main
from pipelines.lineage import trace

A, B = "20260101T000000Z-aaaa", "20260102T000000Z-bbbb"
FILE = {"name": "green_tripdata_2023-01.parquet", "sha256": "ab" * 32, "bytes": 1, "rows": 1}
METRICS = {"average_precision": {"value": 0.8, "low": 0.7, "high": 0.9}}


@pytest.fixture
def artifacts(tmp_path: Path, seal: Seal) -> Path:
    """Two bundles, A live until B was; run-9 sealed none. The folder of A's run is there."""
    for bundle_id in (A, B):
        made = {"run_id": f"run-{bundle_id[-4:]}", "git_commit": "c0ffee", "parameters": {"seed": 7}}
        seal(tmp_path / "artifacts", bundle_id, **made, data={"files": [FILE]}, metrics=METRICS)
        registry.promote(tmp_path / "artifacts", bundle_id, f"{bundle_id} is better")
    registry.reject(tmp_path / "artifacts", "weak", "run-9")
    for name in ("run-aaaa", "run-9"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "report.html").write_text("<p>")
    (tmp_path / "runs" / "run-9" / "parameters.json").write_text('{"seed": 9}')
    return tmp_path / "artifacts"


def test_a_bundle_leads_to_everything(artifacts: Path, tmp_path: Path) -> None:
    """Run, report, parameters, data hashes, commit, figures, and when it was live."""
    found = trace(artifacts, tmp_path / "runs", A)
    assert found["run_id"] == "run-aaaa"
    assert found["report"] == str(tmp_path / "runs" / "run-aaaa" / "report.html")
    assert (found["git_commit"], found["parameters"], found["metrics"]) == ("c0ffee", {"seed": 7}, METRICS)
    assert found["data"]["files"] == [FILE]
    (line,) = found["history"]
    assert line["until"] == registry.history(artifacts)[1]["at"]


def test_a_removed_bundle_can_still_be_traced(artifacts: Path, tmp_path: Path, seal: Seal) -> None:
    """Alerts outlive bundles: the manifest is kept, and the trace says that the bundle is gone."""
    old = "20250101T000000Z-0000"
    seal(artifacts, old, run_id="run-old", git_commit="beef")
    assert registry.retire(artifacts, 2) == [old]
    found = trace(artifacts, tmp_path / "runs", old)
    assert (found["is_there"], found["git_commit"], found["run"]) == (False, "beef", None)


def test_a_refused_run_can_be_traced(artifacts: Path, tmp_path: Path) -> None:
    """A run whose candidate was not sealed is found by its own name, with its reason and parameters."""
    found = trace(artifacts, tmp_path / "runs", "run-9")
    assert (found["bundle_id"], found["parameters"]) == (None, {"seed": 9})
    assert [line["reason"] for line in found["history"]] == ["weak"]


@pytest.mark.parametrize(("name", "message"), [("2026", "is the beginning of"), ("nope", "no bundle or run 'nope'")])
def test_a_name_that_fits_none_or_several_is_refused(artifacts: Path, tmp_path: Path, name: str, message: str) -> None:
    """The sentence lists what there is."""
    with pytest.raises(BundleError, match=f"{message}.*{A}, {B}"):
        trace(artifacts, tmp_path / "runs", name)


def test_the_command_reads_as_lines_and_as_json(artifacts: Path, tmp_path: Path) -> None:
    """`history ID` for people, `history --json ID` for programs; the beginning of a name is enough."""
    places = ["--artifacts", str(artifacts), "--runs", str(tmp_path / "runs")]
    text = CliRunner().invoke(main, ["history", A[:8], *places]).stdout
    for part in (
        A,
        "run-aaaa",
        "c0ffee",
        "seed = 7",
        FILE["sha256"],
        "average_precision 0.8 [0.7, 0.9]",
        "report.html",
    ):
        assert str(part) in text
    found = json.loads(CliRunner().invoke(main, ["history", "--json", A, *places]).stdout)
    assert found["bundle_id"] == A
