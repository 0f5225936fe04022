"""Filling topics, and watching and reading what comes out, straight at the broker."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from fraudlib.broker import ensure_topics
from fraudlib.errors import ServiceError
from fraudlib.kafka import Publisher, Row, partitions_of
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings

CHUNK: Final = 20_000
WATCH_SECONDS: Final = 0.05


async def fill(settings: Settings, messages: Iterable[tuple[bytes, bytes | None]]) -> int:
    """Write messages to `transactions`, each to its key's partition; how many there were."""
    await ensure_topics(settings.kafka_bootstrap_servers, settings.topic_partitions)
    publisher = Publisher(settings)
    await publisher.start()
    sent, waiting = 0, iter(messages)
    try:
        partitions = await publisher.partitions(TOPIC_TRANSACTIONS)
        while chunk := list(itertools.islice(waiting, CHUNK)):
            rows: dict[int, list[Row]] = {}
            for number, (key, value) in zip(
                partitions_of([k for k, _ in chunk], partitions).tolist(), chunk, strict=True
            ):
                rows.setdefault(number, []).append((key, value, []))
            await asyncio.gather(*(publisher.send_rows(TOPIC_TRANSACTIONS, p, part) for p, part in rows.items()))
            sent += len(chunk)
    finally:
        await publisher.stop()
    return sent


@asynccontextmanager
async def reader(
    settings: Settings, topics: Iterable[str]
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """Consumer of every partition of some topics, outside any group."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(t, p) for t in topics for p in sorted(consumer.partitions_for_topic(t) or ())]
        consumer.assign(partitions)
        yield consumer, partitions
    finally:
        await consumer.stop()


async def ends(consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Next offset of each partition, by a fetch: when asked, the embedded broker leaves most of the last batch out."""
    known = await consumer.end_offsets(partitions)
    filled = [tp for tp in partitions if known[tp] > 0]
    for tp in filled:
        consumer.seek(tp, known[tp] - 1)
    waiting = set(filled)
    while waiting:
        waiting -= (await consumer.getmany(*waiting, timeout_ms=500)).keys()
    return {tp: consumer.highwater(tp) if known[tp] else 0 for tp in partitions}


async def read_all(settings: Settings, topic: str, seen: Callable[[Any], None]) -> int:
    """Hand every message that a topic holds now to `seen`, in order within each partition; how many there were."""
    count = 0
    async with reader(settings, [topic]) as (consumer, partitions):
        left = {tp: end for tp, end in (await ends(consumer, partitions)).items() if end}
        await consumer.seek_to_beginning(*partitions)
        while left:
            for tp, messages in (await consumer.getmany(*left, timeout_ms=500)).items():
                for message in messages:
                    seen(message)
                count += len(messages)
                if messages[-1].offset + 1 >= left[tp]:
                    del left[tp]
    return count


async def total(settings: Settings, topics: Iterable[str]) -> int:
    """Messages that the topics hold together."""
    async with reader(settings, topics) as (consumer, partitions):
        return sum((await ends(consumer, partitions)).values())


@dataclass(frozen=True)
class Curve:
    """Messages that came, over time.

    Attributes
    ----------
    points : (s, count) from before the first message to the one that makes it complete.
    """

    points: list[tuple[float, int]]

    @property
    def count(self) -> int:
        """Messages in all."""
        return self.points[-1][1]

    @property
    def seconds(self) -> float:
        """From the last look before the first message to the last look."""
        before = [at for at, count in self.points if count <= 0]
        return self.points[-1][0] - (before[-1] if before else self.points[0][0])

    @property
    def per_second(self) -> float:
        """Mean rate."""
        return self.count / self.seconds


async def watch(settings: Settings, topics: Sequence[str], before: int, expected: int, seconds: float) -> Curve:
    """Watch topics that held `before` messages until `expected` more are there.

    Raises
    ------
    ServiceError
        If they do not come in time.
    """
    points: list[tuple[float, int]] = []
    async with reader(settings, topics) as (consumer, partitions):
        end = time.monotonic() + seconds
        while not points or points[-1][1] < expected:
            now, count = time.monotonic(), sum((await consumer.end_offsets(partitions)).values()) - before
            if points and 0 < count == points[-1][1]:
                exact = sum((await ends(consumer, partitions)).values()) - before
                count = exact if exact >= expected else count
            points.append((now, count))
            if now > end:
                raise ServiceError(f"expected {expected} messages in {topics} within {seconds:.0f} s, found {count}")
            await asyncio.sleep(WATCH_SECONDS)
    return Curve(points)
