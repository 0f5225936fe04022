"""Workers that die, hang and lose their GPU: real processes, with a model that does so on purpose."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaProducer

from fraudlib import manifest, paths
from fraudlib.paths import CURRENT, MANIFEST
from fraudlib.settings import Settings
from fraudlib.wire.delivery import Deduplicator
from fraudlib.worker import precedents
from fraudlib.worker.precedents import Ruling

from .conftest import Service, Site, free_port, until

SWAPS = int(os.environ.get("SWAPS", "60"))  # 200 take three quarters of a minute
TRIP = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}

# Importable by name, as the model in a process of its own has to be.
SCRIPT = '''\
import asyncio, ctypes, os, sys, time
from types import SimpleNamespace
import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from fraudlib.worker import main as worker
from fraudlib.settings import Settings
from fraudlib.worker.stages import Stages


class Marked:
    """Scores by the fare; does what the mark in the tip says."""

    threshold = 100.0

    def __init__(self, name, device):
        self.bundle_id, self.device = name, device

    def score(self, columns):
        tips = columns.get("tip_amount", np.zeros(1))
        fares = columns["fare_amount"]
        if (tips == 601).any():
            ctypes.string_at(0)
        if (tips == 602).any():
            os._exit(3)
        if (tips == 603).any():
            time.sleep(600)
        if (tips == 604).any() and self.device == "cuda":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if len(fares) > int(os.environ.get("ROWS", "100000")):
            raise MemoryError("too many rows")
        time.sleep(float(os.environ.get("SLOW", "0")))
        least = 95 if self.bundle_id == "stricter" else 100
        return SimpleNamespace(anomaly_score=fares, is_flagged=fares >= least, reasons={})


def load(folder):
    return Marked(folder.name, os.environ.get("DEVICE", "cpu"))


def load_on_cpu(folder):
    return Marked(folder.name, "cpu")


async def send(self, batch, topic, *, partition):
    if topic == "scores" and os.environ.get("FAULT") == "dies before scores":
        os._exit(9)
    if topic == "transactions.dlq" and os.environ.get("FAULT") == "no dead letters":
        future = asyncio.get_running_loop().create_future()
        future.set_exception(TopicAuthorizationFailedError())
        return future
    return await send_batch(self, batch, topic, partition=partition)


if __name__ == "__main__":
    if os.environ.get("FAULT") == "blocked loop":
        Stages.lags = lambda self: time.sleep(600)
    send_batch, AIOKafkaProducer.send_batch = AIOKafkaProducer.send_batch, send
    sys.exit(worker.run(Settings(), load, load_on_cpu))
'''


@pytest.fixture
def marked(site: Site) -> Site:
    """A place with a broker, and a current bundle that is only a name."""
    (site.folder / "marked.py").write_text(SCRIPT)
    artifacts = site.folder / "artifacts"
    (artifacts / "marked").mkdir(parents=True)
    manifest.write_atomic(artifacts / CURRENT, b"marked")
    site.env |= {"FRAUDLIB_ARTIFACTS_DIR": str(artifacts), "FRAUDLIB_SESSION_TIMEOUT_MS": "1000"}
    broker = site.start("broker")
    until(lambda: broker.says("broker is up"))
    return site


METRICS_PORT = str(free_port())


def start(site: Site, **changes: str) -> Service:
    """Start the worker with the marked model."""
    log = site.folder / f"marked-{len(site.services)}.log"
    env = {**os.environ, **site.env, "FRAUDLIB_METRICS_PORT": METRICS_PORT, **changes}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "marked.py"], env=env, stdout=file, stderr=file, cwd=site.folder, start_new_session=True
        )
    service = Service("marked", process, log)
    site.services.append(service)
    return service


def metrics() -> str:
    """Text of the running worker's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
        return answer.read().decode()


def message(number: int, tip: float = 0.0, fare: float = 12.5) -> tuple[bytes, bytes]:
    """A trip with an identity, and a mark in the tip."""
    trip = TRIP | {"transaction_id": f"t-{number}", "tip_amount": tip, "fare_amount": fare}
    return b"t-%d" % number, json.dumps(trip).encode()


def scored(messages: list[Any]) -> list[str]:
    """Identities that a reader with the filter sees, in any order."""
    is_fresh = Deduplicator()
    scores = [json.loads(m.value) for m in messages]
    return sorted(s["transaction_id"] for s in scores if is_fresh(s["src_partition"], s["src_offset"]))


@pytest.mark.slow
@pytest.mark.parametrize("mark", [601, 602], ids=["segfault", "exit"])
def test_a_record_that_kills_the_process_is_isolated_after_three_deaths(marked: Site, mark: int) -> None:
    """Three workers die, the fourth puts the record aside with its place; all others are scored, once."""
    numbers = range(400)
    marked.produce("transactions", *[message(n, mark if n == 200 else 0.0) for n in numbers])
    deaths = 0
    while True:
        worker = start(marked)
        until(lambda w=worker: w.process.poll() is not None or w.says("record kills the process"), 30, worker.log)
        if worker.process.poll() is None:
            break
        deaths += 1
        assert deaths <= 3
    assert deaths == 3
    scores = marked.read("scores", lambda found: len(found) >= 399, 10)
    assert scored(scores) == sorted(f"t-{n}" for n in numbers if n != 200)
    (dead,) = marked.read("transactions.dlq", bool, 10)
    headers = {name: value.decode() for name, value in dead.headers}
    assert (dead.key, dead.value) == message(200, mark)
    assert headers["error"] == "CrashLoop"
    assert "3 times" in headers["reason"]
    assert (headers["src_topic"], int(headers["src_partition"])) == ("transactions", dead.partition)
    (source,) = [m for m in marked.read("transactions", lambda f: len(f) >= 400, 10) if m.key == b"t-200"]
    assert int(headers["src_offset"]) == source.offset
    assert worker.stop() == 0


def test_without_dead_letters_the_worker_stops_and_skips_nothing(marked: Site) -> None:
    """Exit code 73 and no commit while the dead-letter topic refuses; once it takes them, everything is there once."""
    marked.produce("transactions", *[message(n) if n != 20 else (b"t-20", b"poison") for n in range(40)])
    worker = start(marked, FAULT="no dead letters")
    assert worker.process.wait(30) == 73
    assert worker.says("nothing is skipped")
    poisoned = next(m for m in marked.read("transactions", lambda f: len(f) >= 40, 10) if m.key == b"t-20")
    before = marked.read("scores", lambda found: False, 1)
    assert not [m for m in before if m.partition == poisoned.partition and m.offset > poisoned.offset]
    start(marked)
    (dead,) = marked.read("transactions.dlq", bool, 20)
    assert dead.value == b"poison"
    assert scored(marked.read("scores", lambda found: len({m.key for m in found}) >= 39, 10)) == sorted(
        f"t-{n}" for n in range(40) if n != 20
    )


@pytest.mark.slow
def test_a_killed_scoring_process_costs_nothing(marked: Site) -> None:
    """The worker goes on by itself until another one has started, and everything is scored once."""
    count = 30_000
    marked.produce("transactions", *[message(n, fare=12.5 + n % 100) for n in range(count)])
    worker = start(marked, SLOW="0.3", FRAUDLIB_SCORE_PROCESS="start", FRAUDLIB_BATCH_MAX_RECORDS="1100")
    until(lambda: worker.says("partitions assigned"), 20, worker.log)
    (child,) = [p for p in psutil.Process(worker.process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    child.kill()
    until(lambda: worker.log.read_text().count("in a process of their own") == 2, 20, worker.log)
    scores = marked.read("scores", lambda found: len(found) >= count, 60)
    assert len(scores) == count
    assert scored(scores) == sorted(f"t-{n}" for n in range(count))
    assert 'fraudlib_worker_failures_total{stage="scoring_process"} 1.0' in metrics()
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_record_that_kills_both_processes_is_isolated(marked: Site) -> None:
    """Scored by the helper first, it kills that one and then the worker, three times, and is put aside."""
    count = 6_000
    marked.produce("transactions", *[message(n, 602 if n == 2_000 else 0.0) for n in range(count)])
    deaths = 0
    while True:
        worker = start(marked, FRAUDLIB_SCORE_PROCESS="start", FRAUDLIB_BATCH_MAX_RECORDS="1100")
        until(lambda w=worker: w.process.poll() is not None or w.says("record kills the process"), 30, worker.log)
        if worker.process.poll() is None:
            break
        deaths += 1
        assert deaths <= 3
    assert deaths == 3
    scores = marked.read("scores", lambda found: len({m.key for m in found}) >= count - 1, 20)
    assert scored(scores) == sorted(f"t-{n}" for n in range(count) if n != 2_000)
    (dead,) = marked.read("transactions.dlq", bool, 10)
    assert (dead.key, dead.value) == message(2_000, 602)
    assert worker.stop() == 0


def test_a_failing_gpu_and_a_full_memory_stop_nothing(marked: Site) -> None:
    """A batch too large for memory is halved, a CUDA error moves the worker to the CPU, once; both are counted."""
    marked.produce("transactions", *[message(n, 604 if n == 30 else 0.0) for n in range(200)])
    worker = start(marked, DEVICE="cuda", ROWS="16")
    scores = marked.read("scores", lambda found: len(found) >= 200, 30)
    assert scored(scores) == sorted(f"t-{n}" for n in range(200))
    assert worker.says("scoring goes on on the CPU")
    text = metrics()
    assert "fraudlib_worker_device_fallbacks_total 1.0" in text
    assert 'fraudlib_worker_failures_total{stage="device"} 1.0' in text
    assert 'fraudlib_worker_failures_total{stage="memory"}' in text
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_model_that_does_not_come_back_ends_the_worker_with_71(marked: Site) -> None:
    """A supervisor can start it anew; told to stop while it hangs, it goes within 15 s and admits what it left."""
    marked.produce("transactions", message(1, 603))
    worker = start(marked, FRAUDLIB_WATCHDOG_SECONDS="1")
    assert worker.process.wait(20) == 71
    worker = start(marked)
    until(lambda: worker.says("partitions assigned"), 20)
    assert worker.says("a worker died")
    until(lambda: "fraudlib_worker_batch_transactions_count 1.0" in metrics(), 10)
    assert worker.stop(seconds=15) == 1


def test_a_blocked_event_loop_ends_the_worker_with_72(marked: Site) -> None:
    """Nothing in the loop can notice; a thread beside it does."""
    worker = start(marked, FAULT="blocked loop", FRAUDLIB_WATCHDOG_SECONDS="1")
    assert worker.process.wait(20) == 72
    assert worker.says("event loop is blocked")


@pytest.mark.slow
def test_a_broker_that_hangs_does_not_keep_a_worker_from_stopping(marked: Site) -> None:
    """SIGTERM ends it within 15 s although the broker answers nothing, and not with 0 where a batch is under way."""
    worker = start(marked, SLOW="2")
    until(lambda: worker.says("partitions assigned"), 20)
    marked.produce("transactions", message(1))
    until(lambda: "fraudlib_worker_batch_transactions_count 1.0" in metrics(), 10)
    (broker,) = psutil.Process(marked.services[0].process.pid).children()
    broker.suspend()
    try:
        assert worker.stop(seconds=15) == 1
    finally:
        broker.resume()


@pytest.mark.slow
def test_swaps_of_sealed_bundles_under_load_lose_nothing(site: Site) -> None:
    """Every message is scored once while `current` changes again and again; an altered bundle is refused."""
    artifacts, source = site.folder / "artifacts", manifest.current_bundle(paths.root() / "artifacts")
    assert source is not None
    names = [source.name, f"{source.name}-b", f"{source.name}-bad"]
    for name in names:
        shutil.copytree(source, artifacts / name)
        content = json.loads((artifacts / name / MANIFEST).read_bytes())
        (artifacts / name / MANIFEST).write_text(json.dumps(content | {"bundle_id": name}))
    weights = artifacts / names[2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    manifest.write_atomic(artifacts / CURRENT, names[0].encode())
    site.env["FRAUDLIB_ARTIFACTS_DIR"] = str(artifacts)
    broker = site.start("broker")
    until(lambda: broker.says("broker is up"))
    worker = site.start("worker", FRAUDLIB_RELOAD_SECONDS="0.02")
    until(lambda: worker.says("partitions assigned"), 30)
    sent = asyncio.run(_swap(site, worker, artifacts, names))
    scores = site.read("scores", lambda found: len(found) >= sent, 60)
    assert len(scored(scores)) == len(scores) == sent
    assert {json.loads(m.value)["bundle_id"] for m in scores} == set(names[:2])
    assert worker.log.read_text().count("new bundle refused") == -(-SWAPS // 20)
    assert worker.stop() == 0


async def _swap(site: Site, worker: Service, artifacts: Path, names: list[str]) -> int:
    """Change the pointer many times, each time once the bundle before serves, and send all the while."""
    sent = 0
    async with AIOKafkaProducer(bootstrap_servers=site.env["FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"]) as producer:

        async def send_until(text: str, count: int) -> None:
            nonlocal sent
            async with asyncio.timeout(20):
                while worker.log.read_text().count(text) < count:
                    for _ in range(20):
                        key, value = message(sent)
                        await producer.send("transactions", value, key)
                        sent += 1
                    await asyncio.sleep(0.01)

        for swap in range(SWAPS):
            if swap % 20 == 0:
                manifest.write_atomic(artifacts / CURRENT, names[2].encode())
                await send_until("new bundle refused", swap // 20 + 1)
            manifest.write_atomic(artifacts / CURRENT, names[1 - swap % 2].encode())
            await send_until("bundle serves", swap + 2)
        await producer.flush()
    return sent


def test_the_ends_of_the_outputs_say_who_began_what(marked: Site) -> None:
    """However far back that reaches; a partition with nothing beyond its committed place is not bound at all."""
    broker = marked.env["FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"]

    async def scenario() -> dict[int, list[Ruling]]:
        async with AIOKafkaProducer(bootstrap_servers=broker) as producer:

            async def write(topic: str, partition: int, outputs: list[tuple[int, str]]) -> None:
                for offset, bundle in outputs:
                    value = json.dumps({"src_offset": offset, "bundle_id": bundle}).encode()
                    await producer.send(topic, value, partition=partition)

            await write("scores", 0, [(n, "a" if n < 500 else "b") for n in range(1000)])
            await write("alerts", 0, [(n, "b") for n in (990, 1003, 1010)])
            await write("scores", 1, [(n, "a") for n in range(10)])
            await write("alerts", 2, [(7, "c")])
            await producer.flush()
        return await precedents.read(Settings(kafka_bootstrap_servers=broker), {0: 400, 1: 10, 2: 3, 3: 0})

    assert asyncio.run(scenario()) == {
        0: [Ruling(400, 500, "a"), Ruling(500, 1011, "b")],
        1: [],
        2: [Ruling(3, 8, "c")],
        3: [],
    }


def test_a_batch_begun_by_one_bundle_is_finished_by_it(marked: Site) -> None:
    """A worker dies after the alerts of a batch; the next one, started with another bundle, keeps to its verdicts."""
    # Both bundles flag 105 and only the second 97, which in part comes before what the first has alerted.
    fares = [97.0, 105.0] * 15 + [97.0] * 30
    marked.produce("transactions", *[message(n, fare=fare) for n, fare in enumerate(fares)])
    assert start(marked, FAULT="dies before scores").process.wait(30) == 9
    (marked.folder / "artifacts" / "stricter").mkdir()
    manifest.write_atomic(marked.folder / "artifacts" / CURRENT, b"stricter")
    worker = start(marked)
    scores = [json.loads(m.value) for m in marked.read("scores", lambda found: len(found) >= len(fares), 20)]
    assert {score["bundle_id"] for score in scores} == {"marked", "stricter"}
    flagged = sorted(s["transaction_id"] for s in scores if s["is_flagged"])
    assert 15 < len(flagged) < 60
    assert scored(marked.read("alerts", lambda found: False, 2)) == flagged
    assert worker.stop() == 0
