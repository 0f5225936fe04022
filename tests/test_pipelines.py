"""The pipeline runs the notebooks in order, keeps what they showed, and publishes only what passed the gate."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from conftest import BUNDLE, STAGES, Seal, write_notebook

from fraudlib import manifest, paths, signature
from fraudlib.errors import BundleError, DataError, GateError, ParameterError
from pipelines import parameters, registry, retrain
from pipelines.__main__ import main, run
from pipelines.notebook import is_complete
from pipelines.status import Status


@pytest.fixture
def artifacts(tmp_path: Path, seal: Seal) -> Path:
    """An artifacts folder with a live bundle and a newer one, which the small 04 claims to have sealed."""
    live = seal(tmp_path / "artifacts", "20250101T000000Z-0000")
    seal(tmp_path / "artifacts", BUNDLE)
    registry.promote(live.parent, live.name, "first")
    return live.parent


@pytest.fixture
def call(notebooks: Path, artifacts: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a retrain on the small notebooks, as a list."""

    def arguments(*more: str) -> list[str]:
        places = ["--notebooks", notebooks, "--artifacts", artifacts, "--runs", tmp_path / "runs"]
        return ["retrain", *map(str, places), *more]

    return arguments


def only_run(tmp_path: Path) -> Path:
    """The one run that a test made."""
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def exit_code(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> int:
    """Exit code of `python -m pipelines` with these arguments, run in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["pipelines", *arguments])
    try:
        run()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def test_a_passed_run_is_promoted_and_kept(
    call: Callable[..., list[str]], artifacts: Path, notebooks: Path, tmp_path: Path
) -> None:
    """From parameters to pointer: executed notebooks, parameters, status, logs, JSON line, history."""
    (tmp_path / "real.yaml").write_text("seed: 11\nservice: yellow\n")
    result = CliRunner().invoke(
        main, call("--params", str(tmp_path / "real.yaml"), "-p", "seed=12", "-p", "shuffle=true")
    )
    folder = only_run(tmp_path)
    outcome = json.loads(result.stdout.splitlines()[-1])
    assert outcome == {
        "run_id": folder.name,
        "bundle_id": BUNDLE,
        "decision": "promote",
        "promoted": True,
        "reason": "AP 0.50",
        "metrics": {"average_precision": 0.5},
        "fetches": {},
    }
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert manifest.current_bundle_name(artifacts) == BUNDLE
    assert manifest.read_history(artifacts)[-1]["run_id"] == folder.name
    report = (folder / "report.html").read_text()
    assert "The new model is live" in report
    for name in STAGES:
        assert f'href="reports/{name}.html"' in report
        assert "time.sleep(pause)" not in (folder / "reports" / f"{name}.html").read_text()

    given = json.loads((folder / "parameters.json").read_text())
    assert given | {"seed": 12, "service": "yellow", "shuffle": True, "rate": 0.5} == given
    assert given["run_dir"] == str(folder)
    assert given["artifacts_dir"] == str(artifacts)
    assert json.loads((folder / "data.json").read_text()) == [12, "yellow", True, "notebooks"]

    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    assert {name: stage["state"] for name, stage in status["stages"].items()} == dict.fromkeys(STAGES, "done")
    assert sorted(path.stem for path in folder.glob("*.ipynb")) == sorted(STAGES)
    assert "rate" not in json.loads((folder / "03_tune.ipynb").read_text())["metadata"]["papermill"]["parameters"]
    log = (folder / "logs" / "03_tune.log").read_text()
    assert "tuned" in log
    assert "without encryption" not in log


def test_a_bundle_that_fails_the_gate_is_not_promoted(
    call: Callable[..., list[str]], artifacts: Path, tmp_path: Path
) -> None:
    """A run through to its end whose gate says no exits 0 and leaves the live bundle live."""
    result = CliRunner().invoke(main, call("-p", "passed=false"))
    outcome = json.loads(result.stdout)
    assert (outcome["promoted"], outcome["bundle_id"], outcome["reason"]) == (False, None, "AP 0.50")
    assert result.exit_code == 0
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"


def test_a_failing_cell_ends_the_run_with_its_error(
    call: Callable[..., list[str]], artifacts: Path, tmp_path: Path
) -> None:
    """One sentence names stage, error and executed notebook; later stages stay pending; nothing is published."""
    result = CliRunner().invoke(main, call("-p", "break_it=true"))
    folder = only_run(tmp_path)
    outcome = json.loads(result.stdout)
    failed = folder / "02_train.failed.ipynb"
    assert outcome["reason"] == f"02_train failed: AssertionError: loss is not finite; look into {failed}"
    assert outcome["promoted"] is False
    assert result.exit_code == 1
    assert failed.is_file()
    assert not (folder / "02_train.ipynb").exists()
    stages = json.loads((folder / "status.json").read_text())["stages"]
    assert [stages[name]["state"] for name in STAGES] == ["done", "failed", "pending", "pending"]
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"


def test_a_run_goes_on_from_the_stage_that_failed(
    call: Callable[..., list[str]], artifacts: Path, notebooks: Path, tmp_path: Path
) -> None:
    """With its parameters; what was done is not done again; then there is nothing left to resume."""
    CliRunner().invoke(main, call("-p", "break_it=true", "-p", "seed=3"))
    folder = only_run(tmp_path)
    before = (folder / "01_prepare.ipynb").read_bytes()
    (folder / "mended").touch()
    result = CliRunner().invoke(main, call("--resume", folder.name))
    outcome = json.loads(result.stdout)
    assert (result.exit_code, outcome["run_id"], outcome["promoted"]) == (0, folder.name, True)
    assert (folder / "01_prepare.ipynb").read_bytes() == before
    assert not (folder / "02_train.failed.ipynb").exists()
    assert json.loads((folder / "data.json").read_text())[0] == 3
    stages = json.loads((folder / "status.json").read_text())["stages"]
    assert [(stages[name]["state"], "error" in stages[name]) for name in STAGES] == [("done", False)] * 4
    again = CliRunner().invoke(main, call("--resume", folder.name))
    assert "found one that is done" in str(again.exception)
    assert len(manifest.read_history(artifacts)) == 2


def test_a_changed_notebook_is_run_again(notebooks: Path, artifacts: Path, tmp_path: Path) -> None:
    """What was done with another notebook does not count as done: its stage and all later ones are left."""
    mine = shutil.copytree(notebooks, tmp_path / "notebooks")
    folder = paths.RunPaths.at(tmp_path / "runs" / "x").folder
    status = Status.new(folder, STAGES)
    code = cell()
    done = {"metadata": {"papermill": {"end_time": "2026-01-01T00:00:00"}}, "cells": [code]}
    for name in STAGES:
        (folder / f"{name}.ipynb").write_text(json.dumps(done))
        status.stage(name, "running", source=manifest.sha256(mine / f"{name}.ipynb"))
    left = retrain.left(folder, mine, status)
    assert left == []
    write_notebook(mine / "03_tune.ipynb", "seed: int = 8", "")
    assert retrain.left(folder, mine, status) == ["03_tune", "04_evaluate"]
    (folder / "02_train.ipynb").write_text(json.dumps(done | {"metadata": {}}))
    assert retrain.left(folder, mine, status) == ["02_train", "03_tune", "04_evaluate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nope"], "found no 'nope'"),
        (["--resume", "../runs"], "found no '../runs'"),
        (["--resume", "x", "-p", "seed=3"], "a resumed run keeps its parameters"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    call: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Exit code 2 and a sentence; nothing ran."""
    assert exit_code(monkeypatch, call(*arguments)) == 2
    assert message in capsys.readouterr().err


def test_a_stage_that_takes_too_long_is_stopped(
    call: Callable[..., list[str]], artifacts: Path, tmp_path: Path
) -> None:
    """The run fails with the stage and its limit; no process is left, and the live bundle stays."""
    before = set(psutil.Process().children(recursive=True))  # of other tests, such as their resource trackers
    result = CliRunner().invoke(main, call("-p", "pause=600", "--stage-timeout", "2"))
    assert result.exit_code == 1
    assert "01_prepare failed: it took longer than 2 s and was stopped" in json.loads(result.stdout)["reason"]
    assert psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, 20)[1] == []
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"


def decided(tmp_path: Path, decision: str, bundle_id: str | None) -> paths.RunPaths:
    """A run whose 04 decided."""
    run_paths = paths.RunPaths.at(tmp_path / "runs" / "x")
    run_paths.metrics.write_text("{}")
    run_paths.gate.write_text(json.dumps({"decision": decision, "reason": "why", "bundle_id": bundle_id}))
    return run_paths


def test_what_the_gate_shadows_is_scored_beside_the_live_one(artifacts: Path, tmp_path: Path) -> None:
    """The live bundle stays, the shadow pointer names the new one, and the history has the reason."""
    outcome = retrain.Outcome("x")
    retrain.decide(decided(tmp_path, "shadow", BUNDLE), artifacts, outcome)
    assert (outcome.decision, outcome.promoted) == ("shadow", False)
    assert manifest.pointed_name(artifacts, "shadow") == BUNDLE
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"
    assert (
        manifest.read_history(artifacts)[-1] | {"event": "shadow", "reason": "why", "run_id": "x"}
        == (manifest.read_history(artifacts)[-1])
    )


def test_what_the_gate_rejects_is_in_the_history(artifacts: Path, tmp_path: Path) -> None:
    """Nobody has to look for a run's folder to learn that a candidate was refused, and why."""
    retrain.decide(decided(tmp_path, "reject", None), artifacts, retrain.Outcome("x"))
    line = manifest.read_history(artifacts)[-1]
    assert (line["event"], line["bundle_id"], line["reason"]) == ("reject", None, "why")


def test_a_gate_that_decided_nothing_is_an_error(artifacts: Path, tmp_path: Path) -> None:
    """A decision that is none of the three is not taken for a yes."""
    with pytest.raises(GateError, match="promote, shadow or reject, found 'maybe'"):
        retrain.decide(decided(tmp_path, "maybe", BUNDLE), artifacts, retrain.Outcome("x"))


def test_with_a_key_the_line_signs_what_it_promotes(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed before it is promoted, so that a worker with the public key takes it."""
    public = signature.generate(tmp_path / "key")
    monkeypatch.setenv("FRAUDLIB_SIGNING_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("FRAUDLIB_VERIFY_KEY_FILE", str(public))
    retrain.decide(decided(tmp_path, "promote", BUNDLE), artifacts, retrain.Outcome("x"))
    signature.check(artifacts / BUNDLE, public)
    assert manifest.current_bundle_name(artifacts) == BUNDLE


def test_a_bundle_that_does_not_verify_is_not_promoted(
    call: Callable[..., list[str]], artifacts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What 04 sealed is verified before it goes live; a damaged one fails the run."""
    (artifacts / BUNDLE / "statistics.json").write_text("{}")
    run_paths = paths.RunPaths.at(tmp_path / "runs" / "x")
    run_paths.metrics.write_text("{}")
    run_paths.gate.write_text(json.dumps({"decision": "promote", "reason": "AP 0.50", "bundle_id": BUNDLE}))
    with pytest.raises(BundleError, match="expected 13 bytes, found 2"):
        retrain.decide(run_paths, artifacts, retrain.Outcome("x"))
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "learning_rate=1"], "unknown parameter learning_rate; known are: seed (int), service (str)"),
        (["-p", "seed=7.5"], "parameter seed: expected int, found '7.5'"),
        (["-p", "rate=fast"], "parameter rate: expected float, found 'fast'"),
        (["-p", "rate=nan"], "parameter rate: expected float, found 'nan'"),
        (["-p", "shuffle=1"], "parameter shuffle: expected bool, found '1'"),
        (["-p", "seed"], "-p seed: expected name=value"),
        (["-p", "run_dir=/tmp"], "parameter run_dir is set by the pipeline; use --runs"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(
    call: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    """Exit code 2, a sentence that names the parameter, no run folder, nothing on stdout."""
    assert exit_code(monkeypatch, call(*arguments)) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_a_second_run_is_told_who_is_at_work(
    call: Callable[..., list[str]], artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs never write to one artifacts folder; the second exits 3 and names the first."""
    with registry.exclusive(artifacts / ".retrain.lock"):
        assert exit_code(monkeypatch, call()) == 3
    assert f"another run (process {os.getpid()}) is writing here" in capsys.readouterr().err


@pytest.fixture
def sleeping(
    call: Callable[..., list[str]], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A retrain inside a cell that sleeps, with every process below it."""
    process = subprocess.Popen([sys.executable, "-m", "pipelines", *call("-p", "pause=60")], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not any("sleep" in text for text in running_cells(tmp_path)):
            assert time.monotonic() < until, "the notebook did not start"
            time.sleep(0.1)
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()


def running_cells(tmp_path: Path) -> list[str]:
    """Sources of the cells that run at the moment."""
    for path in (tmp_path / "runs").glob("*/01_prepare.running.ipynb"):
        try:
            cells = json.loads(path.read_text())["cells"]
        except ValueError:
            return []
        return ["".join(c["source"]) for c in cells if c["metadata"]["papermill"]["status"] == "running"]
    return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_and_publishes_nothing(
    sleeping: tuple[subprocess.Popen[bytes], list[psutil.Process]],
    artifacts: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """Child and kernel end with the pipeline, however it ends; the live bundle stays and the lock is free."""
    process, below = sleeping
    assert len(below) >= 2
    process.send_signal(number)
    code = process.wait(60)
    _, alive = psutil.wait_procs(below, 20)
    assert alive == []
    assert manifest.current_bundle_name(artifacts) == "20250101T000000Z-0000"
    with registry.exclusive(artifacts / ".retrain.lock"):
        pass
    folder = only_run(tmp_path)
    assert not (folder / "01_prepare.ipynb").exists()
    if number != signal.SIGKILL:
        assert code == 130
        assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def cell(status: str = "completed", count: int | None = 1) -> dict[str, Any]:
    """A code cell as papermill leaves it."""
    return {"cell_type": "code", "source": "x", "execution_count": count, "metadata": {"papermill": {"status": status}}}


@pytest.mark.parametrize(
    ("end_time", "cells", "complete"),
    [
        ("2026-01-01T00:00:00", [cell(), cell()], True),
        (None, [cell(), cell()], False),
        ("2026-01-01T00:00:00", [cell(), cell("failed")], False),
        ("2026-01-01T00:00:00", [cell("running"), cell("pending", None)], False),
        ("2026-01-01T00:00:00", [cell(), cell("completed", None)], False),
    ],
)
def test_an_interrupted_notebook_does_not_count_as_done(
    end_time: str | None, cells: list[dict[str, Any]], complete: bool
) -> None:
    """Done means an end time, and every cell completed and counted."""
    assert is_complete({"metadata": {"papermill": {"end_time": end_time}}, "cells": cells}) is complete


@pytest.mark.parametrize("content", ["- seed", "seed: [1, 2]", "seed: {a: 1}", "a: b: c"])
def test_a_parameter_file_holds_one_value_a_name(tmp_path: Path, content: str) -> None:
    """Lists, nested mappings and broken YAML are refused with the file's name."""
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ParameterError, match=r"bad\.yaml"):
        parameters.read(path)


def test_yaml_never_guesses_types(tmp_path: Path) -> None:
    """What YAML would read as a date, a number or a truth value stays the text that was written."""
    path = tmp_path / "p.yaml"
    path.write_text("day: 2023-05-01\nmonths: 1.10\nflag: no\nempty:\n")
    assert parameters.read(path) == {"day": "2023-05-01", "months": "1.10", "flag": "no", "empty": ""}


@pytest.mark.parametrize(
    "declaration", ["months = 3", "months: list = [1]", "months: int = 2.5", "months: int = 1 + 2"]
)
def test_a_parameter_cell_has_typed_literals_only(tmp_path: Path, declaration: str) -> None:
    """A notebook whose parameters cannot be checked is refused by name."""
    write_notebook(tmp_path / "n.ipynb", declaration, "")
    with pytest.raises(ParameterError, match=r"n\.ipynb.*months"):
        parameters.declared(tmp_path / "n.ipynb")


def test_a_shared_parameter_means_one_thing() -> None:
    """Two notebooks cannot give one name two defaults."""
    one, two = parameters.Parameter("seed", "int", 7), parameters.Parameter("seed", "int", 8)
    with pytest.raises(ParameterError, match="declare seed differently"):
        parameters.merge([{"seed": one}, {"seed": two}])


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    """No traceback from inside papermill."""
    with pytest.raises(DataError, match=r"01_prepare\.ipynb"):
        parameters.declared(tmp_path / "01_prepare.ipynb")


REAL = sorted(paths.root().glob("notebooks/0[1-4]_*.ipynb"))


@pytest.mark.skipif(len(REAL) < 4, reason="the notebooks are not written yet")
@pytest.mark.parametrize("name", ["sample", "real_green", "month_ahead_green", "year_ahead_green"])
def test_the_committed_parameter_files_fit_the_notebooks(name: str) -> None:
    """Every name and value in pipelines/params is one that the notebooks declare."""
    known = parameters.merge([parameters.declared(path) for path in REAL])
    given = parameters.read(paths.root() / "pipelines" / "params" / f"{name}.yaml")
    assert parameters.resolve(known, given).keys() >= given.keys()


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_papermill_sees_every_parameter_that_python_sees(path: Path) -> None:
    """Papermill drops a line with a second equals sign, even in its comment; such a parameter could not be set."""
    cells = [c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(cells) == 1
    names = [node.target.id for node in ast.parse("".join(cells[0]["source"])).body]
    assert names == list(parameters.declared(path))
    assert {"run_dir"} <= set(names)
