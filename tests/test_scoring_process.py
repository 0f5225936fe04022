"""The scoring process makes what the worker would, and whatever becomes of it, the worker can go on without it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from bench import trivial
from fraudlib.telemetry import WorkerMetrics
from fraudlib.worker import scoring_process
from fraudlib.worker.journal import Journal
from fraudlib.worker.outputs import Judged, Outputs, Record, process, write
from fraudlib.worker.quarantine import Quarantine
from fraudlib.worker.scoring_process import FEWEST, ScoringProcess

TRIP: dict[str, Any] = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
SECONDS = 30.0


class Marked(trivial.Scorer):
    """Does what a mark in the fare says: 661 ends a process other than `home`, 662 is too much, 663 takes for ever."""

    def __init__(self, bundle_id: str = "marked", home: int = 0) -> None:
        self.bundle_id, self.home = bundle_id, home

    def score(self, columns: Mapping[str, NDArray[Any]]) -> trivial.Scores:
        """Scores of n rows."""
        fares = columns["fare_amount"]
        if os.getpid() != self.home:
            if (fares == 661).any():
                os._exit(3)
            if (fares == 662).any():
                raise MemoryError("too much")
            if (fares == 663).any():
                time.sleep(600)
        # Bundles with names of different lengths score differently.
        return super().score({"fare_amount": np.where(fares == 14, np.nan, fares + len(self.bundle_id))})


def load(folder: Path) -> Marked:
    """A loader that another process can import."""
    if folder.name.startswith("gone"):
        raise FileNotFoundError(folder)
    return Marked(folder.name)


HERE = Marked(home=os.getpid())


def messages(count: int = FEWEST, *marked: float) -> list[Any]:
    """Plain trips of two partitions, the last ones with the marks for their fares."""
    fares = [12.5 + n % 60 for n in range(count - len(marked))] + list(marked)
    trips = [orjson.dumps(TRIP | {"fare_amount": fare, "transaction_id": f"t-{n}"}) for n, fare in enumerate(fares)]
    return [Record("transactions", n // 700, n, b"t-%d" % n, trip) for n, trip in enumerate(trips)]


def oddities() -> list[Any]:
    """All that a message can be: without key or value, over several lines, poison, dear, without a finite score."""
    pretty = orjson.dumps(TRIP | {"fare_amount": 99.0, "colour": "b\nc"}, option=orjson.OPT_INDENT_2)
    values = [None, b"", b"\n", b"poison\n\x00", b"[]", b"\xff", pretty, pretty[:-1]]
    pairs = [(key, value) for value in values for key in (None, b"k", b"\n")]
    odd = [Record("transactions", 5, n, key, value) for n, (key, value) in enumerate(pairs)]
    return [*messages(), *odd, *messages(40, 14.0, 99.0)]


@pytest.fixture
def metrics() -> WorkerMetrics:
    """Metrics of a worker."""
    return WorkerMetrics(CollectorRegistry())


def prepare(helper: ScoringProcess, bundle_id: str = "marked") -> bool:
    """Whether it has the bundle, in the end."""
    return asyncio.run(helper.prepare(bundle_id, asyncio.Event()))


@pytest.fixture
def helper(tmp_path: Path, metrics: WorkerMetrics) -> Iterator[ScoringProcess]:
    """A scoring process that has the bundle "marked"."""
    helper = ScoringProcess(load, tmp_path, metrics, "WARNING")
    assert prepare(helper)
    yield helper
    helper.close()


def result(begun: "Future[list[Judged] | None] | None") -> list[Judged] | None:
    """What came of a batch that was taken."""
    assert begun is not None
    return begun.result(SECONDS)


def soon(what: Any) -> Any:
    """First true result of a question that is asked again and again."""
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def sample(metrics: WorkerMetrics, name: str, **labels: str) -> float | None:
    """Value of a metric."""
    return metrics.registry.get_sample_value(f"fraudlib_worker_{name}", labels)


def comparable(out: Outputs) -> Any:
    """Outputs without the moments at which they were written."""

    def rows(parts: dict[int, Any]) -> Any:
        return {
            partition: [
                (key, re.sub(b'"scored_at":"[^"]*"', b"", value or b""), [h for h in headers if h[0] != "failed_at"])
                for key, value, headers in part
            ]
            for partition, part in parts.items()
        }

    scores = [array.tolist() for array in out.anomaly_scores]
    return rows(out.scores), rows(out.alerts), rows(out.dead_letters), out.scored, scores, out.alert_fields, out.causes


def test_it_makes_what_the_worker_makes(helper: ScoringProcess) -> None:
    """Scores, alerts, dead letters and counts of whatever a message can be, in the same order."""
    judged = result(helper.begin(oddities(), HERE))
    assert judged is not None
    found = write(oddities(), judged, HERE)
    assert comparable(found) == comparable(process(oddities(), HERE))
    assert sorted(found.causes) == ["SchemaError"] * 21 + ["ScoreError"]
    assert set(found.alerts) == {0, 1, 5}


def test_batches_come_back_in_their_own_places(helper: ScoringProcess) -> None:
    """Several are there at once, and places are free again afterwards."""
    for _ in range(3):
        sizes = [FEWEST + n for n in range(scoring_process.SLOTS)]
        begun = [helper.begin(messages(size), HERE) for size in sizes]
        found = [judged for one in begun if (judged := result(one))]
        assert [sum(len(part.decoded.rows) for part in judged) for judged in found] == sizes


def test_more_than_fits_is_not_taken(helper: ScoringProcess) -> None:
    """While all places are full, a batch is the worker's own."""
    begun = [helper.begin(messages(FEWEST, 663.0), HERE) for _ in range(scoring_process.SLOTS)]
    assert all(begun)
    assert helper.begin(messages(), HERE) is None


def test_small_batches_and_those_of_a_gpu_stay(helper: ScoringProcess) -> None:
    """The way there and back costs more than it saves, and a GPU scores in the worker."""
    assert helper.begin(messages(FEWEST - 1), HERE) is None
    on_gpu: Any = SimpleNamespace(inner=SimpleNamespace(device="cuda:0"), bundle_id="marked")
    assert helper.begin(messages(), on_gpu) is None


def test_its_death_is_counted_and_it_comes_again(
    helper: ScoringProcess, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches that were there come back undone; after a pause another process takes the next ones."""
    monkeypatch.setattr(scoring_process, "PAUSE_SECONDS", 0.3)
    begun = [helper.begin(messages(FEWEST, 661.0), HERE), helper.begin(messages(), HERE)]
    assert [result(one) for one in begun] == [None, None]
    assert helper.begin(messages(), HERE) is None
    assert (sample(metrics, "scoring_process_up"), sample(metrics, "failures_total", stage="scoring_process")) == (0, 1)
    assert prepare(helper)
    assert sample(metrics, "scoring_process_up") == 1
    assert result(helper.begin(messages(), HERE)) is not None


@pytest.mark.parametrize(
    "batch",
    [messages(FEWEST, 662.0), [Record("t", 0, n, b"k", b" " * 50_000) for n in range(FEWEST)]],
    ids=["too much for memory", "too large for its place"],
)
def test_what_it_cannot_do_comes_back(helper: ScoringProcess, batch: list[Any], metrics: WorkerMetrics) -> None:
    """Whose fault that is finds the worker, whose rules it takes; the process goes on with the next batch."""
    assert result(helper.begin(batch, HERE)) is None
    assert result(helper.begin(messages(), HERE)) is not None
    assert sample(metrics, "failures_total", stage="scoring_process") == 0


def test_another_bundle_is_learned_aside(helper: ScoringProcess) -> None:
    """Until it is there the worker scores by it alone; one from before is loaded again where it is asked for."""
    for name in ("the second", "the very third", "marked"):
        judged = result(soon(lambda name=name: helper.begin(messages(), Marked(name))))
        assert judged is not None
        assert judged[0].scores is not None
        assert set(judged[0].scores.anomaly_score.tolist()) == {12.5 + n % 60 + len(name) for n in range(60)}


def test_a_bundle_that_it_cannot_load_is_left_to_the_worker(helper: ScoringProcess) -> None:
    """The process goes on with the one it has, and nobody waits for the other."""
    started = time.monotonic()
    assert not prepare(helper, "gone")
    assert time.monotonic() - started < scoring_process.READY_SECONDS / 2
    assert helper.begin(messages(), Marked("gone")) is None
    assert result(helper.begin(messages(), HERE)) is not None
    assert helper.begin(messages(), Marked("gone")) is None


def test_without_batches_it_ends_and_is_not_missed(
    tmp_path: Path, metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is given back after a while; the next large batch starts another one, without a pause."""
    monkeypatch.setattr(scoring_process, "IDLE_SECONDS", 0.5)
    helper = ScoringProcess(load, tmp_path, metrics, "WARNING")
    assert prepare(helper)
    soon(lambda: sample(metrics, "scoring_process_up") == 0)
    assert sample(metrics, "failures_total", stage="scoring_process") == 0
    assert prepare(helper)
    assert result(helper.begin(messages(), HERE)) is not None
    helper.close()


def test_closing_leaves_nobody_waiting(helper: ScoringProcess, metrics: WorkerMetrics) -> None:
    """What is under way comes to nothing at once, no process is left, and none is started any more."""
    begun = helper.begin(messages(FEWEST, 663.0), HERE)
    helper.close()
    assert helper.begin(messages(), HERE) is None
    assert result(begun) is None
    soon(lambda: not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())])
    assert helper.begin(messages(), HERE) is None
    assert sample(metrics, "failures_total", stage="scoring_process") == 0


def test_a_loader_that_cannot_go_there_changes_nothing(tmp_path: Path, metrics: WorkerMetrics) -> None:
    """The worker scores by itself."""
    helper = ScoringProcess(lambda folder: Marked(folder.name), tmp_path, metrics, "WARNING")
    assert not prepare(helper)
    assert helper.begin(messages(), HERE) is None
    helper.close()


LONELY = """
import time
from pathlib import Path
import psutil, test_scoring_process as t

if __name__ == "__main__":
    helper = t.ScoringProcess(t.load, Path(), t.WorkerMetrics(t.CollectorRegistry()), "WARNING")
    assert t.prepare(helper)
    helper.begin(t.messages(t.FEWEST, 663.0), t.Marked())
    time.sleep(0.5)
    print(*[p.pid for p in psutil.Process().children()], flush=True)
    time.sleep(600)
"""


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    """Also where that one is killed, and the model does not come back from a batch."""
    script = tmp_path / "lonely.py"
    script.write_text(LONELY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        children = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        assert children
        worker.send_signal(signal.SIGKILL)
        assert psutil.wait_procs(children, 10)[1] == []


@pytest.mark.parametrize("ahead", [False, True])
def test_the_quarantine_takes_its_help_and_does_without(
    helper: ScoringProcess, metrics: WorkerMetrics, tmp_path: Path, ahead: bool
) -> None:
    """A batch comes out the same with it, and where it died; a range in which a worker died is not given to it."""
    journal = Journal(tmp_path)
    journal.open(0)
    quarantine = Quarantine(journal, load, tmp_path, helper)
    for batch in (messages(), messages(FEWEST, 661.0), messages()):
        ranges = {0: (0, 700), 1: (700, len(batch))}
        begun = quarantine.begin(batch, ranges, HERE) if ahead else None
        assert comparable(quarantine.process(batch, ranges, HERE, begun)) == comparable(process(batch, HERE))
    assert sample(metrics, "failures_total", stage="scoring_process") == 1
    journal.close_all()


def test_outputs_of_another_bundle_are_not_taken(helper: ScoringProcess, tmp_path: Path) -> None:
    """What was begun by one bundle does not count where the batch turns out to be another's."""
    quarantine = Quarantine(Journal(tmp_path), load, tmp_path, helper)
    begun = quarantine.begin(messages(), {}, HERE)
    assert begun is not None
    assert begun.judged is not None
    found = quarantine.process(messages(), {}, Marked("second", os.getpid()), begun)
    assert comparable(found) == comparable(process(messages(), Marked("second", os.getpid())))


def test_a_stop_or_a_signal_to_all_is_no_failure(helper: ScoringProcess, metrics: WorkerMetrics) -> None:
    """A worker that is told to stop does not wait for it, and where both are told to end, none is missed."""
    stopping = asyncio.Event()
    stopping.set()
    assert not asyncio.run(helper.prepare("another", stopping))
    (child,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    child.terminate()
    soon(lambda: sample(metrics, "scoring_process_up") == 0)
    assert sample(metrics, "failures_total", stage="scoring_process") == 0
