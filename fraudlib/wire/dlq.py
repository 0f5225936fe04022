"""Dead letters: what was put aside, why, and sending it again once the cause is gone."""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiokafka.errors import KafkaError

from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.wire import topics
from fraudlib.wire.credentials import no_broker
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher, Row

REPLAYED_FROM: Final = "replayed_from"  # header of a message that was sent again: the dead letter's partition-offset


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes
    ----------
    partition, offset : its place in the dead-letter topic. key, value : as they came.
    error : class of the error. reason : sentence. src_topic, src_partition, src_offset : where it came from.
    failed_at : UTC, ISO 8601.
    """

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    error: str
    reason: str
    src_topic: str
    src_partition: str
    src_offset: str
    failed_at: str

    def as_json(self) -> dict[str, Any]:
        """Letter as a JSON object; bytes that are no UTF-8 are written as escapes."""
        return {name: _text(item) if isinstance(item, bytes) else item for name, item in asdict(self).items()}

    def __str__(self) -> str:
        size = "no value" if self.value is None else f"{len(self.value):,} bytes"
        source = f"{self.src_topic} {self.src_partition}-{self.src_offset}"
        return f"{self.failed_at}  {source}  {self.error}: {self.reason}  (key {_text(self.key)!r}, {size})"


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def _letter(message: Any) -> Letter:
    headers = {name: value.decode(errors="backslashreplace") for name, value in message.headers}
    names = ("error", "reason", "src_topic", "src_partition", "src_offset", "failed_at")
    return Letter(
        message.partition, message.offset, message.key, message.value, *(headers.get(name, "") for name in names)
    )


def letters(settings: Settings, error: str | None = None, since: str = "", limit: int | None = None) -> list[Letter]:
    """Dead letters in the order in which they failed.

    Parameters
    ----------
    error : class of the error, any by default. since : earliest `failed_at`. limit : the latest so many.

    Raises
    ------
    ServiceError
        If the broker does not answer.
    """
    found: list[Letter] = []
    try:
        asyncio.run(topics.read_all(settings, TOPIC_DEAD_LETTERS, lambda message: found.append(_letter(message))))
    except (KafkaError, OSError) as err:
        raise asyncio.run(no_broker(settings)) from err
    wanted = [x for x in found if (error is None or x.error == error) and x.failed_at >= since]
    wanted.sort(key=lambda x: (x.failed_at, x.partition, x.offset))
    return wanted[-limit:] if limit is not None else wanted


def replay(settings: Settings, wanted: list[Letter]) -> int:
    """Send dead letters again, as they came, to the partition that they came from; how many were acknowledged.

    A letter stays in its topic: sent again, it is another message, and one that fails again is put aside again.

    Raises
    ------
    ServiceError
        If the broker does not take them all; the message says how many it has.
    """
    return asyncio.run(_replay(settings, wanted))


def _by_partition(wanted: list[Letter], partitions: int) -> Iterator[tuple[int, list[Row]]]:
    rows: dict[int, list[Row]] = {}
    for letter in wanted:
        came_from = int(letter.src_partition) if letter.src_partition.isdigit() else letter.partition
        headers = [(REPLAYED_FROM, f"{letter.partition}-{letter.offset}".encode())]
        rows.setdefault(came_from % partitions, []).append((letter.key, letter.value, headers))
    yield from rows.items()


async def _replay(settings: Settings, wanted: list[Letter]) -> int:
    publisher = Publisher(settings)
    try:
        await publisher.start()
    except (KafkaError, OSError) as err:
        raise await no_broker(settings) from err
    done = 0
    try:
        for partition, rows in _by_partition(wanted, await publisher.partitions(TOPIC_TRANSACTIONS)):
            try:
                await publisher.send_rows(TOPIC_TRANSACTIONS, partition, rows)
            except (NotSentError, OutcomeUnknownError) as err:
                done += err.acknowledged
                raise ServiceError(f"{done} of {len(wanted)} dead letters were sent again, then: {err}") from err
            done += len(rows)
    finally:
        await publisher.stop()
    return done
