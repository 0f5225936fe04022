"""Reading what a topic holds right now, from its beginning, outside any consumer group."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from fraudlib.kafka import client_options
from fraudlib.settings import Settings


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
