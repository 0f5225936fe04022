"""How the services talk to Kafka: connection options, partitions of keys, and publishing with a known outcome."""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
)
from numpy.typing import NDArray

from fraudlib.errors import ServiceError
from fraudlib.settings import Settings
from fraudlib.wire.credentials import security_options
from fraudlib.wire.singles import PATIENCE_SECONDS, Lane, Single

log = logging.getLogger(__name__)

Row = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
"""Key, value and headers of a message to publish."""

BATCH_BYTES: Final = 900_000  # below the 1,048,588 bytes that Kafka takes in one batch by default
FEW_ROWS: Final = 512  # of a partition, that are sent as one batch
STRIKES: Final = 3
_M: Final = 0x5BD1E995  # of murmur2
_BITS: Final = 0xFFFFFFFF

# After these the broker has certainly not appended; any other error may come after the write.
_REFUSED: Final = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTopicError,
    TopicAuthorizationFailedError,
)
_NOT_WRITTEN: Final = (NotEnoughReplicasError, ProducerClosed)
# An idempotent producer that met one of these fails for ever; only a new one helps.
_POISONED: Final = (OutOfOrderSequenceNumber, ProducerFenced, UnknownProducerId)


class NotSentError(ServiceError):
    """The broker has not got the message; sending it again is safe.

    Attributes
    ----------
    acknowledged : of several rows, how many leading ones the broker has for certain.
    """

    acknowledged = 0


class RefusedError(NotSentError):
    """The broker answered, and will not take this message however often it is sent."""


class OutcomeUnknownError(ServiceError):
    """The broker may or may not have the message; sending it again may write it twice.

    Attributes
    ----------
    acknowledged : of several rows, how many leading ones the broker has for certain.
    """

    acknowledged = 0


def client_options(settings: Settings) -> dict[str, Any]:
    """Options that every Kafka client of the project takes; raises as `credentials.security_options` does."""
    servers = settings.kafka_bootstrap_servers
    return {"bootstrap_servers": servers, "request_timeout_ms": 5000, **security_options(settings)}


def partitions_of(keys: Sequence[bytes], partitions: int) -> NDArray[np.int64]:
    """Partition of each key, as Kafka's default partitioner chooses it (murmur2), so that all clients agree.

    Examples
    --------
    >>> partitions_of([b"kafka", b"trip-21"], 4).tolist()
    [0, 2]
    """
    out = np.empty(len(keys), dtype=np.int64)
    by_length: dict[int, list[int]] = {}
    for row, key in enumerate(keys):
        by_length.setdefault(len(key), []).append(row)
    for length, rows in by_length.items():
        raw = np.frombuffer(b"".join([keys[row] for row in rows]), dtype=np.uint8).reshape(len(rows), length)
        whole = length // 4 * 4
        words = np.ascontiguousarray(raw[:, :whole]).view("<u4").astype(np.uint64).T
        rest = np.zeros(len(rows), dtype=np.uint64)
        for i in range(whole, length):
            rest |= raw[:, i].astype(np.uint64) << np.uint64(8 * (i - whole))
        out[rows] = (_murmur2(words, rest, length) & np.uint64(0x7FFFFFFF)).astype(np.int64) % partitions
    return out


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of one key, the same as `partitions_of`, which pays for many only.

    Examples
    --------
    >>> partition_of(b"trip-21", 4)
    2
    """
    whole = len(key) // 4
    words = struct.unpack_from(f"<{whole}I", key)
    return int(_murmur2(words, int.from_bytes(key[4 * whole :], "little"), len(key)) & 0x7FFFFFFF) % partitions


def _murmur2(words: Iterable[Any], rest: Any, length: int) -> Any:
    """Kafka's murmur2 of keys of one length, in 32 bits each: their words and the rest, as numbers or uint64 arrays."""
    h: Any = 0x9747B28C ^ length
    for word in words:
        k = word * _M & _BITS
        k = (k ^ k >> 24) * _M & _BITS
        h = h * _M & _BITS ^ k
    if length % 4:
        h = (h ^ rest) * _M & _BITS
    h = (h ^ h >> 13) * _M & _BITS
    return h ^ h >> 15


def _one_batch(producer: AIOKafkaProducer, rows: Sequence[Row]) -> Any:
    """The rows as one closed batch, None where they do not fit."""
    batch = producer.create_batch()
    for key, value, headers in rows:
        if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
            return None
    batch.close()
    return batch


def _leading(producer: AIOKafkaProducer, singles: Sequence[Single]) -> tuple[Any, int]:
    """As many of the first messages as fit into a batch, one at least, as a closed one, and how many they are."""
    batch = producer.create_batch()
    count = 0
    for single in singles:
        if batch.append(timestamp=None, key=single.key, value=single.value, headers=[]) is None:
            break
        count += 1
    batch.close()
    return batch, count


def _retrieve(future: "asyncio.Future[Any]") -> None:
    # A future that was given up may still fail; asked for its exception, it does not complain at its end.
    if not future.cancelled():
        future.exception()


class Publisher:
    """A Kafka producer whose failures say whether the message was sent, and that knows when to be replaced.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._strikes = 0
        self._partitions: dict[str, int] = {}
        self._lanes: dict[int | None, Lane] = {}
        self.broken = asyncio.Event()

    async def start(self) -> None:
        """Connect.

        Raises
        ------
        aiokafka.errors.KafkaError
            If the broker does not answer.
        """
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            enable_idempotence=self._settings.kafka_idempotence,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * BATCH_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await _close(producer, 2)
            raise
        self._producer, self._strikes, self._partitions, self._lanes = producer, 0, {}, {}
        self.broken.clear()

    async def stop(self, seconds: float = 5.0) -> bool:
        """Flush and disconnect; False where that did not end in time."""
        producer, self._producer = self._producer, None
        return True if producer is None else await _close(producer, seconds)

    def _current(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise NotSentError("the broker is not connected; try again")
        return self._producer

    async def answers(self) -> bool:
        """Whether the broker answers a request for metadata within two seconds."""
        if self._producer is None:
            return False
        try:
            async with asyncio.timeout(2):
                return bool(await self._producer.client.force_metadata_update())
        except (KafkaError, TimeoutError):
            return False

    async def partitions(self, topic: str) -> int:
        """Number of partitions of a topic.

        Raises
        ------
        NotSentError
            If the broker does not say within a second.
        """
        if topic not in self._partitions:
            try:
                async with asyncio.timeout(1):
                    self._partitions[topic] = len(await self._current().partitions_for(topic))
            except (KafkaError, TimeoutError) as err:
                error = NotSentError(f"the broker does not describe topic {topic}; try again")
                raise self._strike(err, error) from err
        return self._partitions[topic]

    async def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Publish one message and wait for the acknowledgement.

        Raises
        ------
        NotSentError, OutcomeUnknownError
        """
        count = self._partitions.get(topic) or await self.partitions(topic)
        partition = partition_of(key, count)
        leader = self._current().client.cluster.leader_for_partition(TopicPartition(topic, partition))
        lane = self._lanes.get(leader)
        if lane is None:
            lane = self._lanes[leader] = Lane(self._ship, self._give_up)
        single = Single(topic, partition, key, value)
        lane.add(single)
        await single.outcome

    async def _ship(self, singles: Sequence[Single]) -> tuple[bool, list[Single]]:
        """Send one batch to each partition, in order; True where the broker has all of it, and what did not fit."""
        parts: dict[tuple[str, int], list[Single]] = {}
        for single in singles:
            parts.setdefault((single.topic, single.partition), []).append(single)
        left: list[Single] = []
        sent: dict[asyncio.Future[Any], list[Single]] = {}
        unsent = list(parts.values())
        went_well = True
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while unsent:
                    some = unsent[-1]
                    producer = self._current()
                    batch, taken = _leading(producer, some)
                    future = await producer.send_batch(batch, some[0].topic, partition=some[0].partition)
                    sent[future] = some[:taken]
                    left += some[taken:]
                    unsent.pop()
        except (KafkaError, TimeoutError, AssertionError, NotSentError) as err:
            went_well = False
            for single in chain.from_iterable(unsent):
                self._give_up(single, err)
        if sent:
            # A little longer than the producer's own limit, so that its more telling error comes first.
            await asyncio.wait(sent, timeout=self._settings.send_timeout_seconds + 0.5)
        for future, some in sent.items():
            future.add_done_callback(_retrieve)
            failure = future.exception() if future.done() else TimeoutError()
            if failure is None:
                self._strikes = 0
                for single in some:
                    single.succeed()
            else:
                went_well = False
                for single in some:
                    single.fail(self._unacknowledged(failure), failure)
        return went_well, left

    def _give_up(self, single: Single, cause: BaseException | None = None) -> None:
        """Tell that a message was not sent."""
        if isinstance(cause, NotSentError):
            single.fail(NotSentError(*cause.args), cause)
        else:
            error = NotSentError("the broker takes no more messages; try again")
            single.fail(self._strike(cause or TimeoutError(), error), cause)

    async def send_rows(self, topic: str, partition: int, rows: Sequence[Row]) -> None:
        """Publish rows in order, one batch in flight, each acknowledged before the next.

        Raises
        ------
        NotSentError, OutcomeUnknownError
            With `acknowledged`, the number of leading rows that the broker has for certain.
        """
        done = 0
        try:
            producer = self._current()
            batch = producer.create_batch()
            for row, (key, value, headers) in enumerate(rows):
                if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                    await self._submit(producer, batch, topic, partition)
                    done, batch = row, producer.create_batch()
                    batch.append(timestamp=None, key=key, value=value, headers=headers)
            if rows:
                await self._submit(producer, batch, topic, partition)
        except (NotSentError, OutcomeUnknownError) as err:
            err.acknowledged = done
            raise

    async def send_parts(self, parts: Mapping[tuple[str, int], Sequence[Row]]) -> None:
        """Publish the rows of several topics and partitions at once, those of each in their order.

        Raises
        ------
        NotSentError, OutcomeUnknownError
            One of them, once nothing is under way any more.
        """
        batches, large = [], []
        for (topic, partition), rows in parts.items():
            batch = _one_batch(self._current(), rows) if len(rows) <= FEW_ROWS else None
            if batch is None:
                large.append(self.send_rows(topic, partition, rows))
            else:
                batches.append((topic, partition, batch))
        if not large:
            return await self._send_batches(batches)
        for result in await asyncio.gather(self._send_batches(batches), *large, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _send_batches(self, batches: Sequence[tuple[str, int, Any]]) -> None:
        """Send one batch each to some partitions, with one wait for all: for few rows, a task each would cost more."""
        futures: list[asyncio.Future[Any]] = []
        errors: list[ServiceError] = []
        cause: BaseException | None = None
        try:
            async with asyncio.timeout(self._settings.send_timeout_seconds):
                for topic, partition, batch in batches:
                    futures.append(await self._current().send_batch(batch, topic, partition=partition))
        except (KafkaError, TimeoutError, AssertionError) as err:
            errors.append(self._strike(err, NotSentError("the broker takes no more messages; try again")))
            cause = err
        except NotSentError as err:
            errors.append(err)
        if futures:
            # A little longer than the producer's own limit, so that its more telling error comes first.
            await asyncio.wait(futures, timeout=self._settings.send_timeout_seconds + 0.5)
        for future in futures:
            future.add_done_callback(_retrieve)
            failure = future.exception() if future.done() else TimeoutError()
            if failure is not None:
                errors.append(self._unacknowledged(failure))
                cause = cause or failure
        if errors:
            raise errors[0] from cause
        self._strikes = 0

    async def _submit(self, producer: AIOKafkaProducer, batch: Any, topic: str, partition: int) -> None:
        batch.close()
        try:
            async with asyncio.timeout(self._settings.send_timeout_seconds):
                future = await producer.send_batch(batch, topic, partition=partition)
        except (KafkaError, TimeoutError, AssertionError) as err:
            raise self._strike(err, NotSentError(f"the broker takes no batch for {topic}; try again")) from err
        await self._acknowledged(future)

    async def _acknowledged(self, future: "asyncio.Future[Any]") -> None:
        future.add_done_callback(_retrieve)
        try:
            # A little longer than the producer's own limit, so that its more telling error comes first.
            async with asyncio.timeout(self._settings.send_timeout_seconds + 0.5):
                await asyncio.shield(future)
        except (KafkaError, TimeoutError) as err:
            raise self._unacknowledged(err) from err
        self._strikes = 0

    def _unacknowledged(self, err: BaseException) -> ServiceError:
        """What an acknowledgement that failed, or did not come in time, says of the message."""
        if isinstance(err, _REFUSED):
            return self._strike(err, RefusedError(f"the broker refused the message: {type(err).__name__}"))
        if isinstance(err, _NOT_WRITTEN):
            return self._strike(err, NotSentError(f"the broker refused the message: {type(err).__name__}"))
        text = "the broker did not acknowledge in time; the message may or may not be there"
        return self._strike(err, OutcomeUnknownError(text))

    def _strike(self, cause: BaseException, error: ServiceError) -> ServiceError:
        self._strikes += 1
        if self._strikes >= STRIKES or isinstance(cause, _POISONED):
            self.broken.set()
        return error


async def _close(producer: AIOKafkaProducer, seconds: float) -> bool:
    # stop() waits for ever where the broker is gone.
    task = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        with contextlib.suppress(KafkaError):
            await asyncio.wait_for(producer.client.close(), 1)
        return False
    return task.exception() is None
