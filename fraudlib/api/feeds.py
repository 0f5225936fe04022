"""What the API reads back from Kafka: the score that a client waits for, and the alerts that everyone may follow."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from fraudlib.schema import TOPIC_ALERTS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.wire.delivery import Deduplicator, FirstOfId
from fraudlib.wire.kafka import client_options

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 2.0
REMEMBERED: Final = 256
BACKLOG: Final = 256


class Tail(ABC):
    """Reads the end of every partition of a topic, outside any consumer group."""

    topic: str
    fetch_wait_ms: int | None = None  # None takes that of the settings
    fetch_bytes = 1_048_576  # most of one partition at a time

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._may_connect = asyncio.Event()
        self._is_stale = False

    def restart(self) -> None:
        """Connect, or connect anew: the broker is there again, perhaps with an empty log."""
        self._is_stale = True
        self._may_connect.set()

    async def run(self) -> None:
        """Read until cancelled, from the first `restart` on; connects again after errors."""
        await self._may_connect.wait()
        while True:
            self._is_stale = False
            consumer = AIOKafkaConsumer(
                **client_options(self._settings),
                enable_auto_commit=False,
                auto_offset_reset="latest",
                fetch_max_wait_ms=self.fetch_wait_ms or self._settings.fetch_wait_ms,
                max_partition_fetch_bytes=self.fetch_bytes,
            )
            try:
                await consumer.start()
                partitions = await self._partitions(consumer)
                consumer.assign(partitions)
                await self._begin(consumer, partitions)
                await self._read(consumer)
            except (KafkaError, OSError) as err:
                log.warning("feed pauses", extra={"topic": self.topic, "error": repr(err)})
            finally:
                stop = asyncio.ensure_future(consumer.stop())
                await asyncio.wait([stop], timeout=2)
            await asyncio.sleep(0.5)

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        while not (numbers := consumer.partitions_for_topic(self.topic)):
            await asyncio.sleep(0.1)
            await consumer._client.force_metadata_update()
        return [TopicPartition(self.topic, number) for number in sorted(numbers)]

    async def _begin(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        await consumer.seek_to_end(*partitions)

    @abstractmethod
    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Take what comes until it is cancelled."""


class ScoreFeed(Tail):
    """Hands a score to whoever waits for it; reads the topic only while somebody does, and a while after."""

    topic = TOPIC_SCORES

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._waiters: dict[bytes, list[asyncio.Future[bytes]]] = {}
        self._wanted = asyncio.Event()
        self._follows = asyncio.Event()

    async def expect(self, transaction_id: str) -> "asyncio.Future[bytes]":
        """Future of the score's bytes; ask before the transaction is sent, and call `forget` in the end."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(transaction_id.encode(), []).append(future)
        self._wanted.set()
        try:
            async with asyncio.timeout(1):
                await self._follows.wait()
        except TimeoutError:
            log.warning("the scores cannot be read at the moment")
        return future

    def forget(self, transaction_id: str, future: "asyncio.Future[bytes]") -> None:
        """Give up waiting."""
        waiting = self._waiters.get(transaction_id.encode())
        if waiting and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiters[transaction_id.encode()]

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._is_stale:
                consumer.pause(*consumer.assignment())
                await self._wanted.wait()
                if self._is_stale:
                    return
                consumer.resume(*consumer.assignment())
                # What was written while nobody waited is of no interest, and may be much.
                await consumer.seek_to_end(*consumer.assignment())
                self._follows.set()
                last_wanted = loop.time()
                while not self._is_stale and loop.time() - last_wanted < IDLE_SECONDS:
                    for messages in (await consumer.getmany(timeout_ms=500)).values():
                        self._hand_out(messages)
                    if self._waiters:
                        last_wanted = loop.time()
                self._follows.clear()
                self._wanted.clear()
                if self._waiters:
                    self._wanted.set()
        finally:
            self._follows.clear()

    def _hand_out(self, messages: list[Any]) -> None:
        if not self._waiters:
            return
        for message in messages:
            for future in self._waiters.pop(message.key, ()):
                if not future.done():
                    future.set_result(message.value)


@dataclass(frozen=True)
class Alert:
    """An alert as it goes to clients: its place in the log, and its JSON."""

    id: str
    data: str


class AlertFeed(Tail):
    """Passes each alert once to every follower, and remembers the latest for those who come back."""

    topic = TOPIC_ALERTS
    fetch_wait_ms = 100  # nobody sees the difference, and a short wait keeps the broker and this process busy

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._recent: deque[Alert] = deque(maxlen=REMEMBERED)
        self._followers: set[asyncio.Queue[Alert | None]] = set()
        self._is_fresh, self._is_first = Deduplicator(), FirstOfId()
        self._read_at: dict[str, int] = {}  # place in the log -> hash of what was there, the latest ones
        self._last_at: dict[int, int] = {}
        self._closing = False

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._followers)

    def close(self) -> None:
        """End every stream."""
        self._closing = True
        for queue in self._followers:
            _put(queue, None)

    async def follow(self, last_id: str | None, recent: int) -> AsyncIterator[Alert]:
        """Alerts from now on, after the `recent` latest, or after those that followed `last_id`."""
        queue: asyncio.Queue[Alert | None] = asyncio.Queue(BACKLOG)
        self._followers.add(queue)
        try:
            for alert in self._since(last_id, recent):
                yield alert
            while not self._closing and (alert_or_end := await queue.get()) is not None:
                yield alert_or_end
        finally:
            self._followers.discard(queue)

    def _since(self, last_id: str | None, recent: int) -> list[Alert]:
        remembered = list(self._recent)
        if last_id is None:
            return remembered[-recent:] if recent else []
        for place, alert in enumerate(remembered):
            if alert.id == last_id:
                return remembered[place + 1 :]
        return remembered

    async def _begin(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        ends = await consumer.end_offsets(partitions)
        starts = await consumer.beginning_offsets(partitions)
        for tp in partitions:
            consumer.seek(tp, max(starts[tp], ends[tp] - REMEMBERED // len(partitions)))

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while not self._is_stale:
            for messages in (await consumer.getmany(timeout_ms=1000)).values():
                for message in messages:
                    self._pass_on(message)

    def _pass_on(self, message: Any) -> None:
        alert = Alert(f"{message.partition}-{message.offset}", message.value.decode(errors="replace"))
        digest = hash(message.value)
        if message.offset <= self._last_at.get(message.partition, -1):
            if self._read_at.get(alert.id) == digest:
                return
            # Something else at a place that was read before: the log began anew, and source positions with it.
            self._is_fresh, self._is_first = Deduplicator(), FirstOfId()
            self._read_at.clear()
            self._last_at.clear()
        self._last_at[message.partition] = message.offset
        self._read_at[alert.id] = digest
        if len(self._read_at) > 4 * REMEMBERED:
            del self._read_at[next(iter(self._read_at))]
        try:
            source = orjson.loads(message.value)
            is_fresh = self._is_fresh(source["src_partition"], source["src_offset"])
            is_fresh = is_fresh and self._is_first(source["transaction_id"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            log.warning("no alert", extra={"partition": message.partition, "offset": message.offset})
            return
        if not is_fresh:
            return
        self._recent.append(alert)
        for queue in self._followers:
            _put(queue, alert)


def _put(queue: "asyncio.Queue[Alert | None]", alert: Alert | None) -> None:
    """Put, at the cost of the oldest where a follower is slow."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(alert)
