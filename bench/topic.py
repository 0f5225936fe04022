"""Filling topics, and watching what comes out, straight at the broker."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fraudlib.broker.main import ensure_topics
from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.wire.kafka import Publisher, Row, partitions_of
from fraudlib.wire.topics import ends, reader

CHUNK: Final = 20_000
WATCH_SECONDS: Final = 0.05


async def fill(settings: Settings, messages: Iterable[tuple[bytes, bytes | None]]) -> int:
    """Write messages to `transactions`, each to its key's partition; how many there were."""
    await ensure_topics(settings)
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
    def _first(self) -> tuple[float, int]:
        """The last look before the first message, else the first look."""
        return next(((at, 0) for at, count in reversed(self.points) if count <= 0), self.points[0])

    @property
    def seconds(self) -> float:
        """From the last look before the first message, or the first look, to the last look."""
        return self.points[-1][0] - self._first[0]

    @property
    def per_second(self) -> float:
        """Mean rate from the first look on; what came before it is not counted.

        Raises
        ------
        ServiceError
            If everything had come by then.
        """
        if self.seconds <= 0:
            raise ServiceError(f"{self.count:,} messages came before the first look; measure with more")
        return (self.count - self._first[1]) / self.seconds


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
