"""How far the workers lag behind, as the API sees it: ends of the log against the group's committed offsets."""

import asyncio
import logging
import math
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from fraudlib.api.problems import Problem
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire.kafka import client_options

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
RECONNECT_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 3.0
RETRY_SECONDS: Final = (1, 30)


class Backlog:
    """Asks the broker twice a second in the background, so that asking this object costs nothing.

    Attributes
    ----------
    lag : transactions in the log that no worker has committed; None where it is not known.
    """

    def __init__(self, settings: Settings, metrics: ApiMetrics) -> None:
        self.lag: int | None = None
        self._settings, self._metrics = settings, metrics
        self._done: tuple[float, int] | None = None
        self._speed = 0.0  # transactions a second that the workers get done

    def require_room(self) -> None:
        """Refuse more transactions while the workers lag too far behind; an unknown lag refuses nothing.

        Raises
        ------
        Problem
            429 with Retry-After, by when the workers should have caught up at their present speed.
        """
        if self.lag is None or self.lag <= self._settings.max_lag:
            return
        least, most = RETRY_SECONDS
        excess = self.lag - self._settings.max_lag
        seconds = min(max(math.ceil(excess / self._speed), least), most) if self._speed > 0 else most
        raise Problem(
            429,
            f"more than {self._settings.max_lag} transactions wait to be scored; nothing was taken, try again",
            headers={"Retry-After": str(seconds)},
        )

    async def run(self) -> None:
        """Watch until cancelled; connects again after errors."""
        options = client_options(self._settings)
        while True:
            consumer = AIOKafkaConsumer(**options, enable_auto_commit=False)
            admin = AIOKafkaAdminClient(**options)
            try:
                await consumer.start()
                await admin.start()
                await self._watch(consumer, admin)
            except (KafkaError, OSError, TimeoutError) as err:
                log.debug("the workers' lag is not known", extra={"error": repr(err)})
            finally:
                self._note(None)
                stops = [asyncio.ensure_future(stop) for stop in (consumer.stop(), admin.close())]
                await asyncio.wait(stops, timeout=2)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _watch(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> None:
        while True:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._look(consumer, admin)
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> None:
        numbers = consumer.partitions_for_topic(TOPIC_TRANSACTIONS)
        if not numbers:
            await consumer._client.force_metadata_update()
            return
        partitions = [TopicPartition(TOPIC_TRANSACTIONS, number) for number in sorted(numbers)]
        committed = await admin.list_consumer_group_offsets(self._settings.consumer_group, partitions=partitions)
        done = {tp: place.offset for tp, place in committed.items() if place.offset >= 0}
        if fresh := [tp for tp in partitions if tp not in done]:
            # A worker begins there where its group has committed nothing yet.
            done |= await consumer.beginning_offsets(fresh)
        ends = await consumer.end_offsets(partitions)
        self._note(sum(max(0, ends[tp] - done[tp]) for tp in partitions))
        self._measure_speed(sum(done.values()))

    def _note(self, lag: int | None) -> None:
        self.lag = lag
        self._metrics.backlog.set(float("nan") if lag is None else lag)
        if lag is None:
            self._done, self._speed = None, 0.0

    def _measure_speed(self, done: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._done is not None:
            speed = max(0.0, (done - self._done[1]) / (now - self._done[0]))
            self._speed += (speed - self._speed) / 4
        self._done = (now, done)
