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
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

from bench.records import SAMPLE
from fraudlib import baselines, paths, trips
from fraudlib.schema import TOPIC_SCORES, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.telemetry import calm_collector, configure_logging
from fraudlib.wire.kafka import Publisher, Row, client_options
from fraudlib.worker.clients import worker_consumer

TREES: Final = 100
COMMIT_SECONDS: Final = 0.2
log = logging.getLogger("fraudlib.bench")


@asynccontextmanager
async def _consumer(settings: Settings, commits_itself: bool = False) -> AsyncIterator[AIOKafkaConsumer]:
    """The worker's consumer, subscribed."""
    consumer = worker_consumer(settings, commits_itself)
    async with consumer:
        consumer.subscribe([TOPIC_TRANSACTIONS])
        log.info("partitions assigned")
        yield consumer


async def ceiling(settings: Settings) -> None:
    """Consume and republish without looking at the records: what the same client can do at most.

    As in the worker, fetching and publishing overlap, batches grow to the same size, commits go on aside, and the
    garbage collector is calmed, without which it takes as long as the rest.
    """
    batches: asyncio.Queue[list[tuple[TopicPartition, list[Any]]]] = asyncio.Queue(1)
    done: dict[TopicPartition, int] = {}
    publisher = Publisher(settings)
    await publisher.start()
    async with _consumer(settings) as consumer:

        async def publish() -> None:
            while True:
                rows: dict[int, list[Row]] = {}
                batch = await batches.get()
                for tp, messages in batch:
                    rows.setdefault(tp.partition, []).extend([(m.key, m.value, []) for m in messages])
                await asyncio.gather(*(publisher.send_rows(TOPIC_SCORES, p, part) for p, part in rows.items()))
                done.update({tp: messages[-1].offset + 1 for tp, messages in batch})

        async def commit() -> None:
            while True:
                await asyncio.sleep(COMMIT_SECONDS)
                if done:
                    await consumer.commit(dict(done))

        async def fetch() -> None:
            while True:
                batch, room = [], settings.batch_max_records
                while room > 0 and not (batch and batches.empty()):
                    polled = await consumer.getmany(timeout_ms=2 if batch else 200, max_records=room)
                    batch += polled.items()
                    room -= sum(map(len, polled.values()))
                await batches.put(batch)

        await asyncio.gather(publish(), commit(), fetch())


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
    calm_collector()
    import uvloop

    uvloop.run({"ceiling": ceiling, "naive": naive}[name](settings))


if __name__ == "__main__":
    main(sys.argv[1])
