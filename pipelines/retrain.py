"""One run of the notebooks 01 to 04, and the promotion of what they sealed."""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fraudlib import manifest
from fraudlib.errors import BundleError, GateError, ServiceError
from fraudlib.paths import RunPaths
from fraudlib.settings import Settings
from pipelines import parameters, registry
from pipelines.notebook import StageError, execute

STAGES: Final = ("01_prepare", "02_train", "03_tune", "04_evaluate")
log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a run came to; its fields are the keys of the JSON line."""

    run_id: str
    bundle_id: str | None = None
    decision: str = "none"
    promoted: bool = False
    reason: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    failed = False  # no field: the line says why, the exit code says that


class Status:
    """`status.json` of a run: its state and that of each stage, rewritten whole at every change."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "status.json"
        self._stages: dict[str, dict[str, Any]] = {name: {"state": "pending"} for name in STAGES}
        self.run("running")

    def stage(self, name: str, state: str, **more: Any) -> None:
        """Record the state of one stage: pending, running, done or failed."""
        self._stages[name] |= {"state": state, "at": manifest.now(), **more}
        self.run("running")

    def run(self, state: str, **more: Any) -> None:
        """Record the state of the run: running, done, failed or interrupted."""
        content = {"run_id": self._path.parent.name, "state": state, "at": manifest.now(), **more}
        manifest.write_atomic(self._path, json.dumps(content | {"stages": self._stages}, indent=1).encode())


def new_run_id() -> str:
    """UTC time of the start and four random hex digits: names of runs sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def check(
    given: Mapping[str, str], notebooks: Path
) -> tuple[dict[str, dict[str, parameters.Parameter]], dict[str, parameters.Value]]:
    """What each stage declares, and the value of every parameter; ParameterError where the given ones do not fit."""
    declared = {name: parameters.declared(notebooks / f"{name}.ipynb") for name in STAGES}
    return declared, parameters.resolve(parameters.merge(declared.values()), given)


def retrain(given: Mapping[str, str], artifacts: Path, runs: Path, notebooks: Path) -> Outcome:
    """Run the four notebooks with the given parameters and promote the bundle that they sealed, if it passed the gate.

    Parameters
    ----------
    given : name and text of each parameter; typed by the notebooks' declarations.
    artifacts, runs, notebooks : absolute folders; the first two are made when missing.

    Raises
    ------
    ParameterError
        If a parameter is unknown or of another type; nothing ran.
    BusyError
        If another run writes to the same artifacts; nothing ran.
    """
    declared, values = check(given, notebooks)
    artifacts.mkdir(parents=True, exist_ok=True)
    with registry.exclusive(artifacts / ".retrain.lock"):
        registry.sweep(artifacts)
        run = RunPaths.at(runs / new_run_id())
        values |= {"run_dir": str(run.folder), "artifacts_dir": str(artifacts)}
        manifest.write_atomic(run.folder / "parameters.json", json.dumps(values, indent=1).encode())
        (run.folder / "logs").mkdir()
        outcome, status = Outcome(run.folder.name), Status(run.folder)
        log.info("run %s in %s", outcome.run_id, run.folder)
        try:
            for name in STAGES:
                own = {key: value for key, value in values.items() if key in declared[name]}
                _stage(notebooks / f"{name}.ipynb", run, own, status)
            _decide(run, artifacts, outcome)
        except (StageError, GateError, BundleError, ServiceError) as err:
            outcome.failed, outcome.reason = True, str(err)
        except BaseException:
            status.run("interrupted")
            raise
        status.run("failed" if outcome.failed else "done", promoted=outcome.promoted, reason=outcome.reason)
        return outcome


def _stage(source: Path, run: RunPaths, values: Mapping[str, parameters.Value], status: Status) -> None:
    name, start = source.stem, time.perf_counter()
    status.stage(name, "running")
    try:
        execute(source, run.folder / source.name, values, run.folder / "logs" / f"{name}.log")
    except StageError as err:
        status.stage(name, "failed", seconds=round(time.perf_counter() - start, 2), error=str(err))
        # 04 ends with an error when its gate says no, so that it fails by hand too; for the run that is a result.
        if run.gate.is_file() and _object(run.gate).get("decision") == manifest.REJECTED:
            return
        raise
    seconds = round(time.perf_counter() - start, 2)
    status.stage(name, "done", seconds=seconds)
    log.info("%s done in %.1f s", name, seconds)


def _decide(run: RunPaths, artifacts: Path, outcome: Outcome) -> None:
    """Do what 04 decided: promote the bundle that it sealed, have it scored in the shadow, or leave it at that."""
    outcome.metrics, gate = _object(run.metrics), _object(run.gate)
    outcome.bundle_id, outcome.reason = gate.get("bundle_id"), str(gate.get("reason"))
    outcome.decision, settings = str(gate.get("decision")), Settings()
    made = (artifacts, str(outcome.bundle_id), outcome.reason, outcome.run_id, settings.verify_key_file)
    if settings.signing_key_file and outcome.bundle_id:
        registry.sign(artifacts, outcome.bundle_id, settings.signing_key_file)
    if outcome.decision == manifest.PROMOTED:
        registry.promote(*made)
        outcome.promoted = True
    elif outcome.decision == manifest.SHADOWED:
        registry.shadow(*made)
    elif outcome.decision == manifest.REJECTED:
        registry.reject(artifacts, outcome.reason, outcome.run_id)
    else:
        raise GateError(f'{run.gate}: expected "decision": promote, shadow or reject, found {gate.get("decision")!r}')
    log.info("%s: %s", outcome.decision, outcome.reason)
    for name in registry.retire(artifacts, settings.keep_bundles):
        log.info("removed %s, beyond the newest %d", name, settings.keep_bundles)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise GateError(f"{path}: expected a JSON object from 04_evaluate ({err})") from err
    if not isinstance(content, dict):
        raise GateError(f"{path}: expected a JSON object from 04_evaluate, found a {type(content).__name__}")
    return content
