"""The embedded broker's engine: its logs, its groups, and its protocol towards clients of all kinds."""

import asyncio
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import CommitFailedError, MessageSizeTooLargeError, UnknownTopicOrPartitionError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.structs import OffsetAndMetadata

from fraudlib.broker import group as broker_group
from fraudlib.broker import log as broker_log
from fraudlib.broker.group import Group, Joined
from fraudlib.broker.log import Partition, Topics

RANGE = [("range", b"topics")]


def batch(*values: bytes) -> bytes:
    """A record batch as a producer sends it."""
    builder = DefaultRecordBatchBuilder(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=1 << 22
    )
    for i, value in enumerate(values):
        builder.append(i, 0, None, value, [])
    return bytes(builder.build())


def records(data: bytes) -> list[tuple[int, bytes]]:
    """Offsets and values of batches that were read."""
    found = []
    while data:
        size = 12 + struct.unpack_from(">i", data, 8)[0]
        one = DefaultRecordBatch(data[:size])
        assert one.validate_crc()
        found += [(record.offset, record.value) for record in one]
        data = data[size:]
    return found


# -- logs -------------------------------------------------------------------------------------------------------------


def test_batches_get_offsets_and_are_read_as_they_came() -> None:
    """Each record has its own offset, its checksum still fits, and reading starts at the batch with the offset."""
    log = Partition()
    assert [log.append(batch(*values)) for values in ((b"a", b"b"), (b"c",), (b"d", b"e", b"f"))] == [
        (0, 0),
        (0, 2),
        (0, 3),
    ]
    assert log.end == 6
    assert records(log.read(0, 1 << 20)[1]) == list(enumerate((b"a", b"b", b"c", b"d", b"e", b"f")))
    assert [offset for offset, _ in records(log.read(4, 1 << 20)[1])] == [3, 4, 5]
    assert [offset for offset, _ in records(log.read(0, 1)[1])] == [0, 1]
    assert log.read(0, 0) == log.read(6, 1 << 20) == (broker_log.NO_ERROR, b"")
    for wrong in (-1, 7):
        assert log.read(wrong, 1 << 20) == (broker_log.OFFSET_OUT_OF_RANGE, b"")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", broker_log.CORRUPT_MESSAGE),
        (batch(b"a")[:-1], broker_log.CORRUPT_MESSAGE),
        (batch(b"a") + b"x", broker_log.CORRUPT_MESSAGE),
        (batch(b"a")[:16] + b"\x01" + batch(b"a")[17:], broker_log.CORRUPT_MESSAGE),
        (batch(b"x" * 600_000, b"x" * 600_000), broker_log.TOO_LARGE),
    ],
)
def test_what_is_no_batch_is_refused(data: bytes, error: int) -> None:
    """Cut, padded, of another version or too large: the log stays as it was."""
    log = Partition()
    assert log.append(data) == (error, -1)
    assert log.end == 0


def test_a_topic_is_made_once() -> None:
    """And with at least one partition."""
    topics = Topics(1 << 20)
    assert topics.create("a", 2) == broker_log.NO_ERROR
    assert topics.create("a", 3) == broker_log.TOPIC_EXISTS
    assert topics.create("b", 0) == broker_log.BAD_PARTITIONS
    assert topics.get("a", 1) is not None
    assert topics.get("a", 2) is topics.get("a", -1) is topics.get("c", 0) is None


def test_memory_is_bounded() -> None:
    """The fullest log loses its oldest batches, never its last; what is gone is out of range, what is left is whole."""
    topics = Topics(1 << 20)
    topics.create("a", 2)
    assert topics.append("b", 0, batch(b"x")) == (broker_log.UNKNOWN_TOPIC, -1)
    topics.append("a", 1, batch(b"rare"))
    for i in range(100):
        assert topics.append("a", 0, batch(b"%d" % i + b"x" * 50_000)) == (broker_log.NO_ERROR, i)
    full, rare = topics.get("a", 0), topics.get("a", 1)
    assert full is not None
    assert rare is not None
    assert full.size + rare.size <= 1 << 20
    assert (rare.start, rare.end, full.end) == (0, 1, 100)
    assert 70 < full.start < 100
    assert full.read(full.start - 1, 1)[0] == broker_log.OFFSET_OUT_OF_RANGE
    assert [offset for offset, _ in records(full.read(full.start, 1 << 21)[1])] == list(range(full.start, 100))
    topics.append("a", 1, batch(b"y" * 1_040_000))
    assert rare.read(1, 1)[0] == broker_log.NO_ERROR


def test_small_batches_take_no_more_memory_than_large_ones() -> None:
    """The bound is of the memory that is taken, not of the bytes alone, which are half of it for a batch of one."""
    topics, one = Topics(1 << 20), batch(b"x")
    topics.create("a", 2)
    tracemalloc.start()
    try:
        for number in range(10_000):
            topics.append("a", number % 2, one)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1.1 * (1 << 20)


# -- groups -----------------------------------------------------------------------------------------------------------


async def joined(group: Group, *names: str, session_ms: int = 10_000, rebalance_ms: int = 10_000) -> list[Joined]:
    """Answers to members that join in this order; new ones, "", come before those who are in and join again."""
    tasks = [asyncio.create_task(group.join(name, session_ms, rebalance_ms, RANGE)) for name in names]
    return await asyncio.gather(*tasks)


async def settled(group: Group, *names: str, **times: int) -> list[Joined]:
    """Members that have joined and have their assignments."""
    members = await joined(group, *names, **times)
    assignments = [(member.member, member.member.encode()) for member in members]
    answers = await asyncio.gather(
        *(group.sync(m.member, m.generation, assignments if m.member == m.leader else []) for m in members)
    )
    assert answers == [(0, member.member.encode()) for member in members]
    return members


async def pair(group: Group, **times: int) -> list[Joined]:
    """Two members that have their assignments, the leader first."""
    (first,) = await settled(group, "", **times)
    second, first = await settled(group, "", first.member, **times)
    return [first, second]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario, for a few seconds at most."""

    async def limited() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(limited())


def test_members_of_a_generation_share_a_leader() -> None:
    """The leader alone learns who is there; a newcomer makes everybody join again."""

    async def scenario() -> None:
        group = Group()
        (first,) = await settled(group, "")
        assert (first.error, first.leader, first.protocol) == (0, first.member, "range")
        assert first.members == [(first.member, b"topics")]
        second = asyncio.create_task(group.join("", 10_000, 10_000, RANGE))
        await asyncio.sleep(0)
        assert group.heartbeat(first.member, first.generation) == broker_group.REBALANCE
        (again,) = await joined(group, first.member)
        newcomer = await second
        assert again.generation == newcomer.generation == first.generation + 1
        assert again.leader == newcomer.leader == first.member
        assert len(again.members) == 2
        assert newcomer.members == []

    run(scenario)


def test_an_earlier_generation_is_fenced() -> None:
    """What a zombie commits or asks is refused, whether it was dropped or only left behind."""

    async def scenario() -> None:
        group = Group()
        old, other = await pair(group)
        place = {("transactions", 0): (7, "")}
        assert group.commit(old.member, old.generation, place) == 0
        assert group.leave(other.member) == 0
        await settled(group, old.member)
        assert group.commit(old.member, old.generation, {("transactions", 0): (3, "")}) == 22
        assert group.commit(other.member, old.generation, {("transactions", 0): (3, "")}) == 25
        assert group.commit("", -1, {("transactions", 0): (3, "")}) == 25
        assert group.heartbeat(other.member, old.generation) == 25
        assert (await group.sync(old.member, old.generation, []))[0] == 22
        assert (await joined(group, other.member))[0].error == 25
        assert group.offsets == place

    run(scenario)


def test_the_silent_are_dropped() -> None:
    """After the session timeout, or where they do not join again in time; the others go on without them."""

    async def scenario() -> None:
        group = Group()
        lasting, silent = await pair(group, session_ms=200)
        for _ in range(6):
            await asyncio.sleep(0.05)
            group.heartbeat(lasting.member, lasting.generation)
            group.expire()
        assert group.heartbeat(silent.member, silent.generation) == broker_group.UNKNOWN_MEMBER
        (alone,) = await settled(group, lasting.member, rebalance_ms=100)
        newcomer = asyncio.create_task(group.join("", 10_000, 100, RANGE))
        await asyncio.sleep(0.15)
        group.expire()
        assert (await newcomer).leader == (await newcomer).member
        assert group.heartbeat(alone.member, alone.generation) == broker_group.UNKNOWN_MEMBER

    run(scenario)


def test_a_member_that_does_not_fit_is_refused() -> None:
    """Without a common way to assign there is no group."""

    async def scenario() -> None:
        group = Group()
        await settled(group, "")
        assert (await group.join("", 10_000, 10_000, [("sticky", b"")])).error == broker_group.INCONSISTENT_PROTOCOL

    run(scenario)


def test_a_rebalance_meets_those_who_wait_for_their_assignment() -> None:
    """A member that waits in vain for its leader is told to join again."""

    async def scenario() -> None:
        group = Group()
        (first,) = await settled(group, "")
        members = await joined(group, "", first.member)
        follower = next(m for m in members if m.member != m.leader)
        waits = asyncio.create_task(group.sync(follower.member, follower.generation, []))
        await asyncio.sleep(0)
        assert group.commit(follower.member, follower.generation, {}) == broker_group.REBALANCE
        assert group.leave(follower.leader) == 0
        assert await waits == (broker_group.REBALANCE, b"")

    run(scenario)


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Address of a running engine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    process = subprocess.Popen([sys.executable, "-m", "fraudlib.broker.server", host, str(port), "64"])
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield host, port
    process.terminate()
    assert process.wait(10) == 0


@pytest.fixture
def options(address: tuple[str, int]) -> dict[str, Any]:
    """Options of a client, and a topic `t` of two partitions."""
    given = {"bootstrap_servers": f"{address[0]}:{address[1]}"}

    async def create() -> None:
        admin = AIOKafkaAdminClient(**given)
        await admin.start()
        await admin.create_topics([NewTopic("t", 2, 1)])
        await admin.close()

    asyncio.run(create())
    return given


def test_a_waiting_reader_hears_at_once(options: dict[str, Any]) -> None:
    """A fetch that waits is answered by the next message, not at its end."""

    async def scenario() -> None:
        partition = TopicPartition("t", 0)
        async with (
            AIOKafkaProducer(**options) as producer,
            AIOKafkaConsumer(**options, fetch_max_wait_ms=5000) as consumer,
        ):
            consumer.assign([partition])
            await consumer.seek_to_end()
            started = time.monotonic()
            reading = asyncio.create_task(consumer.getone())
            await asyncio.sleep(0.3)
            sent = await producer.send_and_wait("t", b"value", b"key", partition=0, headers=[("h", b"x")])
            message = await reading
            assert time.monotonic() - started < 2
            assert (message.offset, message.key, message.value, message.headers) == (
                sent.offset,
                b"key",
                b"value",
                (("h", b"x"),),
            )
            assert await consumer.end_offsets([partition]) == {partition: sent.offset + 1}
            assert await consumer.beginning_offsets([partition]) == {partition: 0}
            assert await consumer.offsets_for_times({partition: 0}) == {partition: None}

    run(scenario)


def test_what_cannot_be_written_is_said(options: dict[str, Any]) -> None:
    """Too large a message, and a topic that is not there."""

    async def scenario() -> None:
        async with AIOKafkaProducer(**options, max_request_size=2_000_000, request_timeout_ms=1000) as producer:
            with pytest.raises(MessageSizeTooLargeError):
                await producer.send_and_wait("t", b"x" * 1_100_000, partition=0)
            with pytest.raises(UnknownTopicOrPartitionError):
                await producer.send_and_wait("none", b"x")

    run(scenario)


def test_partitions_move_and_a_dropped_reader_cannot_commit(options: dict[str, Any]) -> None:
    """Two readers share the partitions; who is dropped, here by a pause, is refused, and nothing committed is lost."""
    group = {"group_id": "g", "enable_auto_commit": False, "auto_offset_reset": "earliest"}

    async def owned(consumer: AIOKafkaConsumer, count: int) -> bool:
        for _ in range(80):
            await consumer.getmany(timeout_ms=100)
            if len(consumer.assignment()) == count:
                return True
        return False

    async def scenario() -> None:
        first = AIOKafkaConsumer("t", **options, **group, session_timeout_ms=2000, heartbeat_interval_ms=300)
        second = AIOKafkaConsumer("t", **options, **group, session_timeout_ms=2000, heartbeat_interval_ms=300)
        await first.start()
        assert await owned(first, 2)
        await second.start()
        assert await owned(second, 1)
        (partition,) = second.assignment()
        await second.commit({partition: OffsetAndMetadata(5, "note")})
        second._coordinator._generation_before = second._coordinator.generation
        await first.stop()
        assert await owned(second, 2)
        assert await second.committed(partition) == 5
        second._coordinator.generation = second._coordinator._generation_before
        with pytest.raises(CommitFailedError):
            await second.commit({partition: 9})
        await second.stop()
        admin = AIOKafkaAdminClient(**options)
        await admin.start()
        assert await admin.list_consumer_group_offsets("g") == {partition: OffsetAndMetadata(5, "note")}
        await admin.close()

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">i", 2**31 - 1),
        struct.pack(">ihhih", 10, 99, 0, 1, -1),
        struct.pack(">ihhih", 10, 0, 3, 1, -1),
        struct.pack(">ihhih", 10, 3, 77, 1, -1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["negative", "huge", "unknown", "empty-produce", "another-version", "http"],
)
def test_what_is_no_request_closes_its_connection_only(
    address: tuple[str, int], options: dict[str, Any], data: bytes
) -> None:
    """Whatever comes, the broker goes on."""
    with socket.create_connection(address, 3) as sock:
        sock.sendall(data)
        assert sock.recv(100) == b""

    async def scenario() -> None:
        async with AIOKafkaProducer(**options) as producer:
            await producer.send_and_wait("t", b"still there")

    run(scenario)


def test_a_newer_client_learns_which_versions_there_are(address: tuple[str, int]) -> None:
    """A version of the first question that is not spoken here is answered so that the client asks again in an older."""
    with socket.create_connection(address, 3) as sock:
        sock.sendall(struct.pack(">ihhih", 10, 18, 3, 5, -1))
        _, correlation, error = struct.unpack_from(">iih", sock.recv(1000))
    assert (correlation, error) == (5, 35)
