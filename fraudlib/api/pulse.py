"""How the whole fares, as the live page shows it: rate, latency, the bundle in use, and some of the scores.

Only the ends of the topic `scores` are looked at, once a second, and only while somebody asks: the cost does not grow
with the traffic.
"""

import asyncio
import logging
import time
from collections import deque
from datetime import datetime
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from fraudlib.api.feeds import Tail
from fraudlib.schema import TOPIC_SCORES
from fraudlib.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
ASKED_SECONDS: Final = 6.0
LOOKED_AT: Final = 24  # scores of one look, over all partitions
SHOWN: Final = 180
FETCH_BYTES: Final = 65_536


class Pulse(Tail):
    """Looks at the latest scores while somebody asks for them."""

    topic = TOPIC_SCORES
    fetch_wait_ms = 100
    fetch_bytes = FETCH_BYTES

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._asked_at = -ASKED_SECONDS
        self._asked = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self._rate: float | None = None
        self._scores: deque[float] = deque(maxlen=SHOWN)
        self._latencies: deque[float] = deque(maxlen=SHOWN)
        self._ends: tuple[float, dict[TopicPartition, int]] | None = None
        self._latest: dict[str, Any] = {}

    def ask(self) -> dict[str, Any]:
        """What is known by now; asking keeps it fresh for the next few seconds.

        Returns
        -------
        dict
            `scores_per_second` (None until it was measured), `latency_ms` {p50, p99} from acceptance to score (None
            where no score is known), `bundle_id`, `threshold`, and `scores`, up to `SHOWN` of the latest.
        """
        self._asked_at = time.monotonic()
        self._asked.set()
        return {
            "scores_per_second": self._rate,
            "latency_ms": _percentiles(sorted(self._latencies)),
            "bundle_id": self._latest.get("bundle_id"),
            "threshold": self._latest.get("threshold"),
            "scores": list(self._scores),
        }

    async def _begin(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        self._forget()
        consumer.pause(*partitions)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while not self._is_stale:
            if time.monotonic() - self._asked_at > ASKED_SECONDS:
                self._rate, self._ends = None, None
                self._asked.clear()
                await self._asked.wait()
                continue
            await self._look(consumer)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        ends = await consumer.end_offsets(consumer.assignment())
        now = time.monotonic()
        each = max(1, LOOKED_AT // len(ends))
        before, places = self._ends or (now, {})
        if self._ends is not None:
            self._rate = round(max(0, sum(ends.values()) - sum(places.values())) / (now - before), 1)
        self._ends = now, ends
        starts = {tp: max(places.get(tp, 0), end - each, 0) for tp, end in ends.items()}
        if fresh := [tp for tp, end in ends.items() if starts[tp] < end]:
            await self._take(consumer, {tp: starts[tp] for tp in fresh}, each)

    async def _take(self, consumer: AIOKafkaConsumer, starts: dict[TopicPartition, int], each: int) -> None:
        for tp, start in starts.items():
            consumer.seek(tp, start)
        consumer.resume(*starts)
        found: list[bytes] = []
        waiting = set(starts)
        end = time.monotonic() + LOOK_SECONDS
        while waiting and time.monotonic() < end:
            for tp, messages in (await consumer.getmany(*waiting, timeout_ms=200, max_records=each)).items():
                found += [message.value for message in messages]
                waiting.discard(tp)
        consumer.pause(*starts)
        self._note(found)

    def _note(self, found: list[bytes]) -> None:
        try:
            scores = sorted(map(orjson.loads, found), key=lambda score: score["scored_at"])
            for score in scores:
                self._scores.append(round(float(score["anomaly_score"]), 3))
                if accepted_at := score.get("accepted_at"):
                    self._latencies.append(_milliseconds(accepted_at, score["scored_at"]))
                self._latest = score
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            log.warning("no scores", extra={"topic": self.topic})


def _milliseconds(start: str, end: str) -> float:
    """Between two stamps; those of two machines may be a little askew."""
    return max(0.0, 1000 * (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {name: round(values[int(share * (len(values) - 1))], 1) for name, share in (("p50", 0.5), ("p99", 0.99))}
