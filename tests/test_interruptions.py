"""However a retraining ends, there is no half bundle, no other live one, and the next run is clean.

RETRAIN_KILLS sets how often a retraining is killed; its writer is killed twice as often (`make interrupt`: 20).
"""

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import BUNDLE, Seal

from fraudlib import manifest, paths
from pipelines import registry

KILLS = int(os.environ.get("RETRAIN_KILLS", "1"))
FIRST = "20250101T000000Z-0000"
# Children of a server that has torch loaded: each starts at once, and none shares threads with this process.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fraudlib.bundle", "pipelines.registry"])


def is_sound(artifacts: Path, live: set[str]) -> None:
    """Every bundle verifies, the live one is one of these, and each line of the history can be read."""
    assert manifest.current_bundle_name(artifacts) in live
    for name in registry.sealed(artifacts):
        manifest.verify_files(artifacts / name)
    for folder in artifacts.glob("[!.]*/"):
        assert (folder / "manifest.json").is_file(), folder
    for line in (artifacts / "history.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.fixture
def artifacts(tmp_path: Path, seal: Seal) -> Path:
    """An artifacts folder with a live bundle and a newer one, which the small 04 claims to have sealed."""
    live = seal(tmp_path / "artifacts", FIRST)
    seal(tmp_path / "artifacts", BUNDLE)
    registry.promote(live.parent, live.name, "first")
    return live.parent


@pytest.fixture
def start(notebooks: Path, artifacts: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a retraining on the small notebooks."""

    def begin(*more: str, largest_file: int | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines", "retrain", "--notebooks", notebooks, "--artifacts", artifacts]
        limit = f"ulimit -f {largest_file}; " if largest_file is not None else ""
        command = ["bash", "-c", f'{limit}exec "$@"', "-", *map(str, [*command, "--runs", tmp_path / "runs"]), *more]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
        )

    return begin


def stage_of(runs: Path) -> str:
    """Stage that the latest run was in."""
    latest = max(runs.glob("*/status.json"), default=None)
    stages = json.loads(latest.read_text())["stages"] if latest else {}
    return next((name for name, stage in stages.items() if stage["state"] == "running"), "between stages")


@pytest.mark.slow
def test_a_retraining_killed_at_random_leaves_all_as_it_was(
    start: Callable[..., subprocess.Popen[str]], artifacts: Path, tmp_path: Path
) -> None:
    """Killed in any stage: nothing half done, no process left; the run can be resumed and comes to its end."""
    draw, killed = random.Random(3), []
    for i in range(KILLS):
        process = start()
        until = time.monotonic() + 60
        # Into the stages in turn, then at some moment inside.
        wanted = ("01_prepare", "02_train", "03_tune", "04_evaluate")[(i + 1) % 4]
        while process.poll() is None and stage_of(tmp_path / "runs") != wanted and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 0.5))
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        assert psutil.wait_procs(below, 30)[1] == []
        killed.append(stage_of(tmp_path / "runs"))
        is_sound(artifacts, {FIRST, BUNDLE})
    assert len(set(killed)) >= min(2, KILLS), killed
    run_id = max(path.parent.name for path in (tmp_path / "runs").glob("*/status.json"))
    again = start("--resume", run_id)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["run_id"] == run_id
    is_sound(artifacts, {BUNDLE})


@pytest.mark.slow
def test_two_trainers_at_once_are_kept_apart(
    start: Callable[..., subprocess.Popen[str]], artifacts: Path, tmp_path: Path
) -> None:
    """Of two started together one runs to its end and the other leaves with exit code 3, having written no run."""
    both = [start(), start()]
    for process in both:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in both) == [0, 3]
    assert len(list((tmp_path / "runs").iterdir())) == 1
    is_sound(artifacts, {BUNDLE})


@pytest.mark.parametrize("largest_file", [0, 1])
def test_a_full_disk_fails_the_run_and_nothing_else(
    start: Callable[..., subprocess.Popen[str]], artifacts: Path, largest_file: int
) -> None:
    """No file may grow beyond this many KiB: the run fails with a sentence, and the live bundle stays."""
    process = start(largest_file=largest_file)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.strip()
    is_sound(artifacts, {FIRST})


def publish(artifacts: Path) -> None:
    """Seal the live bundle's parts anew and make them live, again and again, until killed."""
    from fraudlib import bundle

    registry.sweep(artifacts)
    folder = manifest.current_bundle(artifacts)
    assert folder is not None
    live = bundle.load(folder)
    for i in range(1000):
        registry.promote(artifacts, reseal(live, artifacts, i), "next")
        registry.retire(artifacts, 2)


def reseal(live: object, artifacts: Path, i: int) -> str:
    """Seal the parts of a loaded bundle under a name of their own; that name."""
    from fraudlib import bundle

    scorer = live.scorer  # type: ignore[attr-defined]
    made = (scorer.model, scorer.statistics, scorer.calibration, {"threshold": scorer.threshold}, {}, {}, {}, {})
    return bundle.seal(artifacts, f"run-{os.getpid()}x{i}", *made).name


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """An artifacts folder in which a copy of the default bundle is live."""
    source = manifest.current_bundle(paths.root() / "artifacts")
    assert source is not None
    target = tmp_path / "real" / FIRST
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / "manifest.json").read_text()) | {"bundle_id": FIRST}
    (target / "manifest.json").write_text(json.dumps(content))
    registry.promote(target.parent, FIRST, "first")
    return target.parent


@pytest.mark.slow
def test_a_writer_killed_at_random_leaves_whole_bundles(real: Path) -> None:
    """Killed while it seals, promotes and retires: what is named is whole, and a sweep removes what was left aside."""
    draw, promoted = random.Random(5), 0
    for _ in range(2 * KILLS):
        process = SERVER.Process(target=publish, args=(real,))
        process.start()
        lines = len(manifest.read_history(real))
        until = time.monotonic() + 60
        while len(manifest.read_history(real)) == lines and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.4))
        assert process.exitcode is None, "the writer ended by itself"
        process.kill()
        process.join()
        promoted += len(manifest.read_history(real)) - lines
        is_sound(real, set(registry.sealed(real)))
    registry.sweep(real)
    assert [path.name for path in real.glob(".*-*")] == []
    assert promoted >= KILLS


def fill(real: Path, told: Path) -> None:
    """Seal and promote under every size limit that stops one of the writes, then without one; tells what went wrong."""
    from fraudlib import bundle

    try:
        live = bundle.load(real / FIRST)
        sizes = {path.stat().st_size for path in (real / FIRST).iterdir()}
        history = (real / "history.jsonl").stat().st_size
        stopped = 0
        for i, limit in enumerate([0, 10, history, history + 30, *(size - 1 for size in sorted(sizes))]):
            before = (real / "history.jsonl").read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                registry.promote(real, reseal(live, real, i), "next")
            except OSError:
                stopped += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert (real / "history.jsonl").read_bytes() == before, limit
            is_sound(real, {FIRST})
            assert not list(real.glob(".sealing-*")), limit
        resealed = reseal(live, real, 99)
        for limit in (0, 10, len(before), len(before) + 30):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                registry.promote(real, resealed, "next")
            except OSError:
                stopped += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert (real / "history.jsonl").read_bytes() == before, limit
            is_sound(real, {FIRST})
        registry.promote(real, resealed, "the disk has room again")
        is_sound(real, {resealed})
        told.write_text(f"stopped {stopped}")
    except BaseException:
        told.write_text(traceback.format_exc())


def test_a_disk_that_is_full_at_any_write_changes_nothing(real: Path, tmp_path: Path) -> None:
    """Each file of a bundle, the history and the pointer are in turn the write that fails; then all goes through."""
    told = tmp_path / "told"
    process = SERVER.Process(target=fill, args=(real, told))
    process.start()
    process.join(120)
    files = len(list((real / FIRST).iterdir()))
    assert told.read_text() == f"stopped {4 + files + 4}"
