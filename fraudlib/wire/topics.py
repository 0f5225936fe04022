"""The topics: made where they are missing, and read as they are now, outside any consumer group."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from fraudlib.broker.main import ensure_topics
from fraudlib.schema import TOPICS
from fraudlib.settings import Settings
from fraudlib.wire.credentials import NOT_CONNECTED, no_broker, security_options
from fraudlib.wire.kafka import Publisher, client_options

PATIENCE_SECONDS: Final = 60.0


def prepare(
    settings: Settings, patience_s: float = PATIENCE_SECONDS, on_wait: Callable[[str], object] = lambda why: None
) -> tuple[list[str], dict[str, int]]:
    """Create the topics that are missing, waiting for the broker as long as `patience_s`.

    Parameters
    ----------
    on_wait : told once, before the first wait, for what and for how long.

    Returns
    -------
    tuple of list of str and dict
        Topics that were created, and the number of partitions of every topic.

    Raises
    ------
    ServiceError
        If the broker does not let this client in, or refuses.
    """
    security_options(settings)
    return asyncio.run(_prepare(settings, patience_s, on_wait))


async def _prepare(
    settings: Settings, patience_s: float, on_wait: Callable[[str], object]
) -> tuple[list[str], dict[str, int]]:
    publisher, end, is_told = Publisher(settings), time.monotonic() + patience_s, False
    while True:
        try:
            created = await ensure_topics(settings)
            await publisher.start()
            break
        except NOT_CONNECTED as err:
            if time.monotonic() > end:
                raise await no_broker(settings) from err
            if not is_told:
                on_wait(f"waiting up to {patience_s:.0f} s for the broker at {settings.kafka_bootstrap_servers}")
                is_told = True
            await asyncio.sleep(1)
    try:
        return created, {topic: await publisher.partitions(topic) for topic in TOPICS}
    finally:
        await publisher.stop()


@asynccontextmanager
async def reader(
    settings: Settings, topics: Iterable[str]
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """Consumer of every partition of some topics.

    Raises
    ------
    aiokafka.errors.KafkaError
        If the broker does not answer.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    try:
        await consumer.start()
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


async def read_all(settings: Settings, topic: str, seen: Callable[[Any], object]) -> int:
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


def fetch(settings: Settings, topic: str, seen: Callable[[Any], object]) -> int:
    """`read_all` for who has no event loop, or is inside of one that runs already, as a notebook is.

    Raises
    ------
    ServiceError
        If the broker does not answer.
    """

    async def read() -> int:
        try:
            return await read_all(settings, topic, seen)
        except (KafkaError, OSError) as err:
            raise await no_broker(settings) from err

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, read()).result()
