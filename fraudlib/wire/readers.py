"""Scores, alerts and dead letters as a reader of the topics sees them: each source position and each id once."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson
from aiokafka import AIOKafkaConsumer

from fraudlib.schema import TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.wire.delivery import Deduplicator, FirstOfId
from fraudlib.wire.kafka import client_options


class Book(Protocol):
    """What keeps count of the messages."""

    def score(self, message: Mapping[str, Any], now: float) -> None: ...

    def alert(self, message: Mapping[str, Any]) -> None: ...

    def dead_letter(self, trip_id: str) -> None: ...


class Reader:
    """Reads the three output topics from their beginning and hands on what the delivery filters pass.

    Parameters
    ----------
    settings : of the broker.
    book : is told of every message.
    on_alert : called with each alert's message, after the book.
    """

    def __init__(self, settings: Settings, book: Book, on_alert: Callable[[Mapping[str, Any]], object]) -> None:
        self._book, self._on_alert = book, on_alert
        self._filters = {topic: (Deduplicator(), FirstOfId()) for topic in (TOPIC_SCORES, TOPIC_ALERTS)}
        self.consumer = AIOKafkaConsumer(
            *self._filters,
            TOPIC_DEAD_LETTERS,
            **client_options(settings),
            auto_offset_reset="earliest",
            fetch_max_wait_ms=settings.fetch_wait_ms,
            enable_auto_commit=False,
        )

    async def read(self, seconds: float = 0.1) -> int:
        """Take what has come, waiting at most `seconds` for it; number of messages."""
        polled = await self.consumer.getmany(timeout_ms=int(1000 * seconds))
        now = time.perf_counter()
        for partition, messages in polled.items():
            for message in messages:
                self._take(partition.topic, message.key, message.value, now)
        return sum(map(len, polled.values()))

    def _take(self, topic: str, key: bytes | None, value: bytes, now: float) -> None:
        if topic == TOPIC_DEAD_LETTERS:
            self._book.dead_letter((key or b"").decode("utf-8", "replace"))
            return
        content = orjson.loads(value)
        is_fresh, is_first = self._filters[topic]
        if not is_fresh(content["src_partition"], content["src_offset"]) or not is_first(content["transaction_id"]):
            return
        if topic == TOPIC_SCORES:
            self._book.score(content, now)
        else:
            self._book.alert(content)
            self._on_alert(content)
