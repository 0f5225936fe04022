"""The worker's clients of the broker: started together, on topics that fit."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from aiokafka import AIOKafkaConsumer

from fraudlib.broker.main import ensure_topics
from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_ALERTS, TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.wire.kafka import Publisher, client_options


def worker_consumer(settings: Settings, commits_itself: bool = False) -> AIOKafkaConsumer:
    """A consumer of the workers' group, not started; `commits_itself` is for measurements that keep no promise."""
    return AIOKafkaConsumer(
        **client_options(settings),
        group_id=settings.consumer_group,
        enable_auto_commit=commits_itself,
        auto_offset_reset="earliest",
        session_timeout_ms=settings.session_timeout_ms,
        heartbeat_interval_ms=min(3000, settings.session_timeout_ms // 3),
        rebalance_timeout_ms=30_000,
        max_poll_interval_ms=60_000,
        max_partition_fetch_bytes=1_048_576,
        fetch_max_bytes=8_388_608,
        fetch_max_wait_ms=settings.fetch_wait_ms,
        # A broker that comes back empty may know no partitions at first; the default looks again after 5 minutes.
        metadata_max_age_ms=5000,
    )


async def start_clients(settings: Settings, publisher: Publisher) -> AIOKafkaConsumer:
    """Create missing topics, start the publisher, and start a consumer of the workers' group, not yet subscribed.

    Raises
    ------
    aiokafka.errors.KafkaError
        If the broker does not answer.
    ServiceError
        If the topics have different numbers of partitions.
    """
    await ensure_topics(settings)
    await publisher.start()
    counts = {topic: await publisher.partitions(topic) for topic in (TOPIC_TRANSACTIONS, TOPIC_SCORES, TOPIC_ALERTS)}
    if len(set(counts.values())) > 1:
        raise ServiceError(f"expected topics of equally many partitions, found {counts}; create them anew")
    consumer = worker_consumer(settings)
    try:
        await consumer.start()
    except BaseException:
        await within(consumer.stop(), 2.0)
        raise
    return consumer


async def within(action: Awaitable[Any], seconds: float) -> bool:
    """Whether the action ended well in time; a client's stop() waits for ever where the broker is gone."""
    task = asyncio.ensure_future(action)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        return False
    return task.exception() is None
