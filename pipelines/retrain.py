"""One run of the notebooks 01 to 04, and what becomes of the bundle that they sealed."""

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fraudlib import manifest
from fraudlib.errors import BundleError, GateError, ParameterError, ServiceError
from fraudlib.paths import RunPaths
from fraudlib.settings import Settings
from pipelines import months, parameters, registry, report
from pipelines.notebook import StageError, execute, is_done
from pipelines.status import Status

STAGES: Final = ("01_prepare", "02_train", "03_tune", "04_evaluate")
STAGE_SECONDS: Final = 6 * 3600.0
PARAMETERS: Final = "parameters.json"  # in a run's folder
Declared = Mapping[str, Mapping[str, parameters.Parameter]]
Values = dict[str, parameters.Value]
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
    fetches: dict[str, int] = field(default_factory=dict)  # how many months were fetched, unpublished or failed
    failed = False  # no field: the line says why, the exit code says that


def new_run_id() -> str:
    """UTC time of the start and four random hex digits: names of runs sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def check(given: Mapping[str, str], notebooks: Path) -> tuple[Declared, Values]:
    """What each stage declares, and the value of every parameter; ParameterError where the given ones do not fit."""
    months.rolls(given)
    declared = {name: parameters.declared(notebooks / f"{name}.ipynb") for name in STAGES}
    return declared, parameters.resolve(parameters.merge(declared.values()), given)


def retrain(
    given: Mapping[str, str],
    artifacts: Path,
    runs: Path,
    notebooks: Path,
    seconds: float = STAGE_SECONDS,
    is_fetching: bool = False,
) -> Outcome:
    """Run the four notebooks with the given parameters and do with the bundle that they sealed what the gate decided.

    Parameters
    ----------
    given : name and text of each parameter; typed by the notebooks' declarations.
    artifacts, runs, notebooks : absolute folders; the first two are made when missing.
    seconds : longest time for each stage.
    is_fetching : first fetch months that are newer than those in the data folder.

    Raises
    ------
    ParameterError
        If a parameter is unknown or of another type; nothing ran.
    DataError
        If the periods roll and there are too few months; nothing ran.
    BusyError
        If another run writes to the same artifacts; nothing ran.
    """
    declared, values = check(given, notebooks)
    train_months = months.rolls(given)
    fetches: dict[str, int] = {}
    artifacts.mkdir(parents=True, exist_ok=True)
    with registry.exclusive(artifacts / ".retrain.lock"):
        if train_months or is_fetching:
            values, fetches = months.roll(values, train_months, is_fetching)
        run = RunPaths.at(runs / new_run_id())
        values |= {"run_dir": str(run.folder), "artifacts_dir": str(artifacts)}
        manifest.write_atomic(run.folder / PARAMETERS, json.dumps(values, indent=1).encode())
        (run.folder / "logs").mkdir()
        return _Run(run, artifacts, notebooks, declared, values, seconds, fetches).go(Status.new(run.folder, STAGES))


def resume(run_id: str, runs: Path, notebooks: Path, seconds: float = STAGE_SECONDS) -> Outcome:
    """Go on with a run from the first stage that did not come to its end, or whose notebook has changed since.

    Its parameters and its artifacts folder are those that it began with.

    Raises
    ------
    ParameterError
        If there is no such run, it is done, or its parameters are no longer those of the notebooks; nothing ran.
    BusyError
        If a run writes to the same artifacts, such as this very one; nothing ran.
    """
    folder = runs / run_id
    if Path(run_id).name != run_id or not (folder / PARAMETERS).is_file():
        names = ", ".join(sorted(path.parent.name for path in runs.glob(f"*/{PARAMETERS}"))[-5:])
        raise ParameterError(
            f"{runs}: expected a run to resume, found no {run_id!r}; the latest are: {names or 'none'}"
        )
    declared, defaults = check({}, notebooks)
    stored: Values = json.loads((folder / PARAMETERS).read_bytes())
    if gone := stored.keys() - defaults.keys():
        raise ParameterError(f"{folder}: the notebooks no longer take {', '.join(sorted(gone))}; start a new run")
    artifacts, run = Path(str(stored["artifacts_dir"])), RunPaths.at(folder)
    artifacts.mkdir(parents=True, exist_ok=True)
    with registry.exclusive(artifacts / ".retrain.lock"):
        status = Status.read(folder, STAGES)
        if status.state == "done":
            raise ParameterError(
                f"{folder}: expected a run that was cut short, found one that is done; start a new run"
            )
        (folder / "logs").mkdir(exist_ok=True)
        return _Run(run, artifacts, notebooks, declared, defaults | stored, seconds).go(status)


@dataclass(frozen=True)
class _Run:
    run: RunPaths
    artifacts: Path
    notebooks: Path
    declared: Declared
    values: Values
    seconds: float
    fetches: Mapping[str, int] = field(default_factory=dict)

    def go(self, status: Status) -> Outcome:
        """Run what is not done yet, decide, and write the report."""
        outcome = Outcome(self.run.folder.name, fetches=dict(self.fetches))
        log.info("run %s in %s", outcome.run_id, self.run.folder)
        try:
            registry.sweep(self.artifacts)
            for name in left(self.run.folder, self.notebooks, status):
                self._stage(name, status)
            decide(self.run, self.artifacts, outcome)
        except (StageError, GateError, BundleError, ServiceError, OSError) as err:
            outcome.failed, outcome.reason = True, str(err)
        except BaseException:
            with contextlib.suppress(OSError):
                status.run("interrupted")
            raise
        # A full disk must not keep the outcome from being told.
        with contextlib.suppress(OSError):
            state = "failed" if outcome.failed else "done"
            status.run(state, decision=outcome.decision, promoted=outcome.promoted, reason=outcome.reason)
        self._report(outcome)
        return outcome

    def _report(self, outcome: Outcome) -> None:
        try:
            log.info("report: %s", report.write(self.run, self.artifacts, asdict(outcome), STAGES))
        except OSError as err:
            log.warning("%s: the report could not be written: %s", self.run.folder, err)
        except Exception:
            # What is live is decided by now; a page that cannot be drawn changes nothing of it.
            log.exception("%s: the report could not be written", self.run.folder)

    def _source(self, name: str) -> Path:
        return self.notebooks / f"{name}.ipynb"

    def _stage(self, name: str, status: Status) -> None:
        start, folder = time.perf_counter(), self.run.folder
        for old in (f"{name}.ipynb", f"{name}.failed.ipynb", f"{name}.running.ipynb"):
            (folder / old).unlink(missing_ok=True)
        status.stage(name, "running", source=manifest.sha256(self._source(name)))
        log.info("%s, %d of %d", name, STAGES.index(name) + 1, len(STAGES))
        own = {key: value for key, value in self.values.items() if key in self.declared[name]}
        try:
            execute(self._source(name), folder / f"{name}.ipynb", own, folder / "logs" / f"{name}.log", self.seconds)
        except StageError as err:
            status.stage(name, "failed", seconds=round(time.perf_counter() - start, 2), error=str(err))
            # 04 ends with an error when its gate says no, so that it fails by hand too; for the run that is a result.
            if self.run.gate.is_file() and _object(self.run.gate).get("decision") == manifest.REJECTED:
                return
            raise
        seconds = round(time.perf_counter() - start, 2)
        status.stage(name, "done", seconds=seconds)
        log.info("%s done in %.1f s", name, seconds)


def left(folder: Path, notebooks: Path, status: Status) -> list[str]:
    """Stages of a run from the first one that is not done with the notebook as it is now."""
    for i, name in enumerate(STAGES):
        source = manifest.sha256(notebooks / f"{name}.ipynb")
        if not is_done(folder / f"{name}.ipynb") or status.source(name) != source:
            return list(STAGES[i:])
    return []


def decide(run: RunPaths, artifacts: Path, outcome: Outcome) -> None:
    """Do what 04 decided: promote the bundle that it sealed, have it scored in the shadow, or leave it at that."""
    outcome.metrics, gate, settings = _object(run.metrics), _object(run.gate), Settings()
    outcome.bundle_id, outcome.reason = gate.get("bundle_id"), str(gate.get("reason"))
    outcome.decision = str(gate.get("decision"))
    made = (artifacts, str(outcome.bundle_id), outcome.reason, outcome.run_id, settings.verify_key_file)
    if settings.signing_key_file and outcome.bundle_id:
        registry.sign(artifacts, outcome.bundle_id, settings.signing_key_file)
    if outcome.decision == manifest.PROMOTED:
        # A run that was cut off right after its promotion is not promoted twice when it is resumed.
        if manifest.current_bundle_name(artifacts) != outcome.bundle_id:
            registry.promote(*made)
        outcome.promoted = True
    elif outcome.decision == manifest.SHADOWED:
        registry.shadow(*made)
    elif outcome.decision == manifest.REJECTED:
        registry.reject(artifacts, outcome.reason, outcome.run_id)
    else:
        raise GateError(f'{run.gate}: expected "decision": promote, shadow or reject, found {gate.get("decision")!r}')
    log.info("%s: %s", outcome.decision, outcome.reason)
    try:
        for name in registry.retire(artifacts, settings.keep_bundles):
            log.info("removed %s, beyond the newest %d", name, settings.keep_bundles)
    except OSError as err:
        # What is live is decided by now; old bundles go after the next run.
        log.warning("%s: old bundles could not be removed: %s", artifacts, err)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise GateError(f"{path}: expected a JSON object from 04_evaluate ({err})") from err
    if not isinstance(content, dict):
        raise GateError(f"{path}: expected a JSON object from 04_evaluate, found a {type(content).__name__}")
    return content
