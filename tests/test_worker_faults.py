"""A scorer that goes on with a full memory and without its GPU, and a watchdog that ends what cannot go on."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from fraudlib.telemetry import WorkerMetrics
from fraudlib.wire.kafka import OutcomeUnknownError, RefusedError
from fraudlib.worker import publish_timeout, stall_check
from fraudlib.worker.device_fallback import FallbackLoader, is_device_error, is_out_of_memory
from fraudlib.worker.outputs import ModelError
from fraudlib.worker.stall_check import HungError, StallCheck, StuckError

torch = pytest.importorskip("torch")


class Fragile:
    """Scores by the fare; raises `error` for more rows than `room`, and whenever it is broken."""

    bundle_id, threshold = "fragile", 10.0

    def __init__(self, device: str, error: Exception, room: int = 10**9) -> None:
        self.device, self.error, self.room, self.is_broken = device, error, room, False
        self.sizes: list[int] = []

    def score(self, columns: dict[str, Any]) -> Any:
        """Scores of the columns."""
        fares = columns["fare_amount"]
        self.sizes.append(len(fares))
        if self.is_broken or len(fares) > self.room:
            raise self.error
        flagged = fares > self.threshold
        return SimpleNamespace(
            anomaly_score=fares,
            is_flagged=flagged,
            reasons={int(row): [{"field": "fare_amount", "observed": fares[row]}] for row in np.flatnonzero(flagged)},
        )


def fallback(gpu: Fragile, cpu: Fragile | None = None) -> tuple[FallbackLoader, Any]:
    """A loader of the two, and what its metrics say."""
    metrics = WorkerMetrics(CollectorRegistry())
    loader = FallbackLoader(lambda folder: gpu, (lambda folder: cpu) if cpu else None, metrics)
    return loader, metrics.registry.get_sample_value


def columns(n: int) -> dict[str, Any]:
    """Fares 0 to n - 1."""
    return {"fare_amount": np.arange(float(n)), "trip_distance": np.ones(n)}


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
)
def test_a_batch_that_memory_is_too_small_for_is_halved(error: Exception) -> None:
    """Scores, flags and reasons are those of the whole batch, in its order; each failure is counted."""
    fragile = Fragile("cuda", error, room=13)
    loader, value = fallback(fragile)
    scores = loader(Path()).score(columns(100))
    assert scores.anomaly_score.tolist() == list(range(100))
    assert np.flatnonzero(scores.is_flagged).tolist() == list(range(11, 100)) == sorted(scores.reasons)
    assert all(reasons[0]["observed"] == row for row, reasons in scores.reasons.items())
    failures = value("fraudlib_worker_failures_total", {"stage": "memory"})
    assert failures == sum(size > 13 for size in fragile.sizes) >= 3


def test_memory_that_is_free_again_is_used_again() -> None:
    """After a while batches go in one piece as before."""
    fragile = Fragile("cpu", MemoryError(), room=10)
    scorer = fallback(fragile)[0](Path())
    scorer.score(columns(64))
    fragile.room = 10**9
    for _ in range(4):
        scorer.score(columns(64))
    assert fragile.sizes[-1] == 64


def test_memory_that_is_too_small_for_one_record_moves_to_the_cpu() -> None:
    """Another program may hold all of the GPU."""
    gpu = Fragile("cuda", torch.OutOfMemoryError("CUDA out of memory"), room=0)
    loader, value = fallback(gpu, Fragile("cpu", RuntimeError()))
    assert loader(Path()).score(columns(5)).anomaly_score.tolist() == [0, 1, 2, 3, 4]
    assert value("fraudlib_worker_device_fallbacks_total") == 1


def test_on_the_cpu_too_little_memory_for_one_record_is_an_error() -> None:
    """There is nowhere else to go: whether the record or the model is to blame is found out above."""
    with pytest.raises(MemoryError):
        fallback(Fragile("cpu", MemoryError(), room=0), Fragile("cpu", MemoryError()))[0](Path()).score(columns(1))


def test_a_cuda_error_moves_to_the_cpu_once_and_for_all_bundles() -> None:
    """The context of the process is lost, so the next bundle is not even tried on the GPU."""
    gpu, cpu = (Fragile(name, RuntimeError("CUDA error: unspecified launch failure")) for name in ("cuda", "cpu"))
    loader, value = fallback(gpu, cpu)
    scorer = loader(Path())
    scorer.score(columns(3))
    gpu.is_broken = True
    assert scorer.score(columns(3)).anomaly_score.tolist() == [0, 1, 2]
    assert loader(Path()).inner is cpu
    assert value("fraudlib_worker_device_fallbacks_total") == 1
    cpu.is_broken = True
    with pytest.raises(ModelError, match="no other"):
        scorer.score(columns(3))


def test_other_errors_are_left_to_whoever_knows_the_records() -> None:
    """A shape that does not fit is neither memory nor device."""
    gpu = Fragile("cuda", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    gpu.is_broken = True
    with pytest.raises(RuntimeError, match="shapes"):
        fallback(gpu, Fragile("cpu", RuntimeError()))[0](Path()).score(columns(3))
    assert not is_device_error(ValueError("CUDA error"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_device_error(RuntimeError("CUDA out of memory"))


BLOCKED = """
import asyncio, time
from fraudlib.worker.watchdog import Watchdog
dog = Watchdog({seconds}, stop_seconds=0.5)
dog.start()
async def main():
    beat = asyncio.create_task(dog.beat(lambda late: None))
    await asyncio.sleep(0.3)
    {body}
    beat.cancel()
asyncio.run(main())
dog.close()
"""


@pytest.mark.parametrize(
    ("seconds", "body", "code"),
    [
        (0.5, "time.sleep(20)", 72),
        (0.5, "await asyncio.sleep(1.5)", 0),
        (60, "dog.stop_asked(); time.sleep(20)", 1),
        (60, "dog.stop_asked(); await asyncio.sleep(20)", 1),
    ],
    ids=["blocked", "busy", "blocked while stopping", "never done with stopping"],
)
def test_a_loop_that_does_not_turn_or_end_is_ended(seconds: float, body: str, code: int) -> None:
    """With the code that says which; one that turns is left alone."""
    script = BLOCKED.format(seconds=seconds, body=body)
    assert subprocess.run([sys.executable, "-c", script], timeout=15).returncode == code


TP = TopicPartition("transactions", 0)


def check(answers: bool = True, assignment: Collection[TopicPartition] = (TP,), **stages: Any) -> None:
    """Watch stages that get nothing and are not at work, but for what is given, for one look."""

    async def answer() -> bool:
        return answers

    async def scenario() -> None:
        usual = {"lags": dict, "scoring_since": None, "last_progress": 0.0, "waits_for_messages": True}
        consumer = SimpleNamespace(assignment=lambda: assignment, last_poll_timestamp=lambda tp: 1e15)
        watch: Any = StallCheck(
            0.01,
            SimpleNamespace(**{**usual, "is_assigned": True, **stages}),  # type: ignore[arg-type]
            consumer,
            SimpleNamespace(answers=answer),  # type: ignore[arg-type]
            SimpleNamespace(is_trying=stages.get("is_trying", False)),  # type: ignore[arg-type]
            WorkerMetrics(CollectorRegistry()),
        )
        watch._taking_on_since = 1.0
        async with asyncio.timeout(1.5):
            await watch.run()

    asyncio.run(scenario())


WAITING = {TP: 5}


def test_a_consumer_that_gets_nothing_while_messages_wait_is_given_up() -> None:
    """Code 70, but not where nothing waits, and not where the broker is gone: that is waited for."""
    with pytest.raises(StuckError, match="5 messages wait"):
        check(lags=lambda: WAITING)
    with pytest.raises(TimeoutError):
        check()
    with pytest.raises(TimeoutError):
        check(answers=False, lags=lambda: WAITING)


def test_a_model_that_hangs_and_partitions_that_are_never_taken_on_are_given_up() -> None:
    """A record that is on trial has its time, though."""
    with pytest.raises(HungError):
        check(scoring_since=1.0)
    with pytest.raises(TimeoutError):
        check(scoring_since=time.monotonic(), is_trying=True)
    with pytest.raises(StuckError, match="taken on"):
        check(is_assigned=False)


def test_a_worker_that_waits_for_partitions_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in a while, and not where it has some."""
    monkeypatch.setattr(stall_check, "TELL_SECONDS", 0.5)
    with caplog.at_level("INFO"):
        with pytest.raises(TimeoutError):
            check(assignment=set())
        assert caplog.messages == []
        with pytest.raises(TimeoutError):
            check(assignment=set(), is_assigned=False)
    assert ["no partitions yet" in message for message in caplog.messages] == [True]


def test_patience_ends_with_refusals_or_time_and_never_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three refusals in a row, or half a minute of answers that never come, end in an error that says what to do."""
    clock = [100.0]
    monkeypatch.setattr(publish_timeout.time, "monotonic", lambda: clock[0])
    tried = publish_timeout.PublishTimeout(30.0)
    for _ in range(5):
        tried.failed(RefusedError("no"))
        tried.failed(RefusedError("no"))
        tried.succeeded()
    for _ in range(3):
        clock[0] += 10
        tried.failed(OutcomeUnknownError("no answer"))
    clock[0] += 11
    with pytest.raises(publish_timeout.UnpublishableError, match=r"no answer.*mend the topic"):
        tried.failed(OutcomeUnknownError("no answer"))
    refused = publish_timeout.PublishTimeout(30.0)
    for _ in range(2):
        refused.failed(RefusedError("too large"))
    with pytest.raises(publish_timeout.UnpublishableError, match="too large"):
        refused.failed(RefusedError("too large"))
