"""What the worker is measured against, each a process of its own: `python -m bench.contenders NAME`.

All read `transactions` in a consumer group, publish one message on `scores` for each, acknowledged, and commit.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pandas as pd
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

from bench.records import SAMPLE
from fraudlib import baselines, paths, trips
from fraudlib.kafka import Publisher, client_options
from fraudlib.schema import TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.telemetry import configure_logging

TREES: Final = 100
log = logging.getLogger("fraudlib.bench")


@asynccontextmanager
async def _consumer(settings: Settings, commits_itself: bool = False) -> AsyncIterator[AIOKafkaConsumer]:
    """The worker's consumer, option by option."""
    consumer = AIOKafkaConsumer(
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
    )
    async with consumer:
        consumer.subscribe([TOPIC_TRANSACTIONS])
        log.info("partitions assigned")
        yield consumer


async def ceiling(settings: Settings) -> None:
    """Consume and republish without looking at the records: what the same client can do at most."""
    batches: asyncio.Queue[dict[Any, list[Any]]] = asyncio.Queue(1)
    publisher = Publisher(settings)
    await publisher.start()
    async with _consumer(settings) as consumer:

        async def publish() -> None:
            while True:
                batch = await batches.get()
                rows = {tp.partition: [(m.key, m.value, []) for m in ms] for tp, ms in batch.items()}
                await asyncio.gather(*(publisher.send_rows(TOPIC_SCORES, p, part) for p, part in rows.items()))
                await consumer.commit({tp: ms[-1].offset + 1 for tp, ms in batch.items()})

        task = asyncio.create_task(publish())
        while not task.done():
            if batch := await consumer.getmany(timeout_ms=200, max_records=settings.batch_max_records):
                await batches.put(batch)
        await task


async def naive(settings: Settings) -> None:
    """One record at a time, as in most tutorials: json, pandas times, a scaler, an isolation forest, a batch of one."""
    columns = trips.to_columns(trips.read(paths.root() / "data" / "sample" / SAMPLE).slice(0, 20_000))
    x = baselines.five_features(columns)
    scaler = StandardScaler().fit(x)
    forest = IsolationForest(n_estimators=TREES, random_state=0).fit(scaler.transform(x))
    async with (
        _consumer(settings, True) as consumer,
        AIOKafkaProducer(**client_options(settings), acks="all") as producer,
    ):
        async for message in consumer:
            trip = json.loads(message.value)
            start, stop = pd.Timestamp(trip["pickup_datetime"]), pd.Timestamp(trip["dropoff_datetime"])
            minutes = (stop - start).total_seconds() / 60
            miles, fare = trip["trip_distance"], trip["fare_amount"]
            row = [[miles, fare, minutes, fare / max(miles, 0.1), miles / max(minutes / 60, 1 / 60)]]
            score = float(-forest.score_samples(scaler.transform(row))[0])
            value = json.dumps({"transaction_id": trip["transaction_id"], "anomaly_score": score}).encode()
            await producer.send_and_wait(TOPIC_SCORES, value, message.key, partition=message.partition)


def main(name: str) -> None:
    """Run one contender until it is killed."""
    settings = Settings()
    configure_logging(name, settings.log_level)
    import uvloop

    uvloop.run({"ceiling": ceiling, "naive": naive}[name](settings))


if __name__ == "__main__":
    main(sys.argv[1])
