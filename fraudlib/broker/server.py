"""The embedded broker's process: the part of Kafka's protocol that this project's clients speak, held in memory.

A fetch is answered as soon as there is something to fetch. One process, one event loop: a batch of records is passed on
as the bytes that it came in, whatever it holds. No replication, no disk, no transactions, no access control.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.protocol import admin, commit, coordination, fetch, group, metadata, offset, produce

from fraudlib.broker.group import NO_OFFSET, Group
from fraudlib.broker.log import NO_ERROR, UNKNOWN_TOPIC, Topics
from fraudlib.telemetry import configure_logging

log = logging.getLogger(__name__)

NODE: Final = 0
MOST_REQUEST_BYTES: Final = 64 * 1024 * 1024
EXPIRE_SECONDS: Final = 0.1
UNSUPPORTED_VERSION: Final = 35
NO_TIMESTAMPS: Final = 43
EARLIEST, LATEST = -2, -1
_FRAME: Final = struct.Struct(">i")
_HEAD: Final = struct.Struct(">hhih")  # key, version, correlation, length of the client's name

# One version of each request, the oldest that has what is needed.
_REQUESTS: Final = {
    kind.API_KEY: kind
    for kind in (
        produce.ProduceRequest_v3,
        fetch.FetchRequest_v4,
        offset.OffsetRequest_v1,
        metadata.MetadataRequest_v1,
        commit.OffsetCommitRequest_v2,
        commit.OffsetFetchRequest_v2,
        coordination.FindCoordinatorRequest_v0,
        group.JoinGroupRequest_v1,
        group.HeartbeatRequest_v0,
        group.LeaveGroupRequest_v0,
        group.SyncGroupRequest_v0,
        admin.ApiVersionRequest_v0,
        admin.CreateTopicsRequest_v1,
    )
}


class Broker:
    """Topics and groups behind the protocol.

    Parameters
    ----------
    memory_mb : that the topics may take.
    """

    def __init__(self, memory_mb: int) -> None:
        self._topics = Topics(memory_mb * 1024 * 1024)
        self._groups: dict[str, Group] = {}
        self._answers: dict[int, Callable[[Any, tuple[str, int]], Awaitable[Any]]] = {
            0: self._produce,
            1: self._fetch,
            2: self._list_offsets,
            3: self._metadata,
            8: self._commit,
            9: self._committed,
            10: self._coordinator,
            11: self._join,
            12: self._heartbeat,
            13: self._leave,
            14: self._sync,
            18: self._versions,
            19: self._create,
        }

    async def expire(self) -> None:
        """Drop silent members, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRE_SECONDS)
            for one in self._groups.values():
                one.expire()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests in their order until it ends."""
        here = writer.get_extra_info("sockname")[:2]
        try:
            while True:
                (size,) = _FRAME.unpack(await reader.readexactly(4))
                if not _HEAD.size <= size <= MOST_REQUEST_BYTES:
                    return
                answer = await self._answer(await reader.readexactly(size), here)
                if answer is not None:
                    writer.write(_FRAME.pack(len(answer)) + answer)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client left, or the broker stops
        except (struct.error, ValueError, TypeError, KeyError, IndexError, UnicodeDecodeError) as err:
            log.warning("a request cannot be read; its connection is closed", extra={"error": repr(err)})
        finally:
            writer.close()

    async def _answer(self, frame: bytes, here: tuple[str, int]) -> bytes | None:
        key, version, correlation, name = _HEAD.unpack_from(frame)
        kind = _REQUESTS[key]
        if version != kind.API_VERSION:
            if key == 18:
                return _FRAME.pack(correlation) + bytes(self._version_list(UNSUPPORTED_VERSION).encode())
            raise ValueError(f"request {key} of version {version}")
        request = kind.decode(frame[_HEAD.size + max(name, 0) :])
        response = await self._answers[key](request, here)
        return None if response is None else _FRAME.pack(correlation) + bytes(response.encode())

    async def _versions(self, request: Any, here: tuple[str, int]) -> Any:
        return self._version_list(NO_ERROR)

    @staticmethod
    def _version_list(error: int) -> Any:
        return admin.ApiVersionResponse_v0(error, [(k, r.API_VERSION, r.API_VERSION) for k, r in _REQUESTS.items()])

    async def _metadata(self, request: Any, here: tuple[str, int]) -> Any:
        every = self._topics.partitions
        topics = []
        # Kafka says nothing to an empty list; saying everything suits clients that only want to look around.
        for name in request.topics or every:
            logs = [(NO_ERROR, number, NODE, [NODE], [NODE]) for number in range(len(every.get(name, [])))]
            topics.append((NO_ERROR if logs else UNKNOWN_TOPIC, name, False, logs))
        return metadata.MetadataResponse_v1([(NODE, *here, None)], NODE, topics)

    async def _create(self, request: Any, here: tuple[str, int]) -> Any:
        made = [(name, self._topics.create(name, count), None) for name, count, *_ in request.create_topic_requests]
        return admin.CreateTopicsResponse_v1(made)

    async def _produce(self, request: Any, here: tuple[str, int]) -> Any:
        topics = []
        for name, parts in request.topics:
            answers = []
            for number, batch in parts:
                error, base = self._topics.append(name, number, batch or b"")
                answers.append((number, error, base, -1))
            topics.append((name, answers))
        return produce.ProduceResponse_v3(topics, 0) if request.required_acks else None

    async def _fetch(self, request: Any, here: tuple[str, int]) -> Any:
        size, topics = self._read(request)
        if size < request.min_bytes and request.max_wait_time > 0:
            wanted = [self._topics.get(name, number) for name, parts in request.topics for number, *_ in parts]
            logs = [one for one in wanted if one is not None]
            loop = asyncio.get_running_loop()
            end = loop.time() + request.max_wait_time / 1000
            while size < request.min_bytes and (left := end - loop.time()) > 0:
                more: asyncio.Future[None] = loop.create_future()
                for one in logs:
                    one.wake(more)
                await asyncio.wait([more], timeout=left)
                for one in logs:
                    one.forget(more)
                size, topics = self._read(request)
        return fetch.FetchResponse_v4(0, topics)

    def _read(self, request: Any) -> tuple[int, list[Any]]:
        """Bytes found, an error counting as enough, and what the response says of each partition."""
        size, room, topics = 0, request.max_bytes, []
        for name, parts in request.topics:
            answers = []
            for number, start, most in parts:
                source = self._topics.get(name, number)
                if source is None:
                    error, records, end = UNKNOWN_TOPIC, b"", -1
                else:
                    (error, records), end = source.read(start, min(most, room - size)), source.end
                size += len(records) if not error else request.min_bytes
                answers.append((number, error, end, end, None, records))
            topics.append((name, answers))
        return size, topics

    async def _list_offsets(self, request: Any, here: tuple[str, int]) -> Any:
        topics = []
        for name, parts in request.topics:
            answers = []
            for number, timestamp in parts:
                source = self._topics.get(name, number)
                if source is None:
                    answers.append((number, UNKNOWN_TOPIC, -1, -1))
                elif timestamp in (EARLIEST, LATEST):
                    answers.append((number, NO_ERROR, -1, source.start if timestamp == EARLIEST else source.end))
                else:
                    answers.append((number, NO_TIMESTAMPS, -1, -1))
            topics.append((name, answers))
        return offset.OffsetResponse_v1(topics)

    async def _coordinator(self, request: Any, here: tuple[str, int]) -> Any:
        return coordination.FindCoordinatorResponse_v0(NO_ERROR, NODE, *here)

    def _group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group())

    async def _join(self, request: Any, here: tuple[str, int]) -> Any:
        joined = await self._group(request.group).join(
            request.member_id, request.session_timeout, request.rebalance_timeout, request.group_protocols
        )
        return group.JoinGroupResponse_v1(
            joined.error, joined.generation, joined.protocol, joined.leader, joined.member, joined.members
        )

    async def _sync(self, request: Any, here: tuple[str, int]) -> Any:
        error, assignment = await self._group(request.group).sync(
            request.member_id, request.generation_id, request.group_assignment
        )
        return group.SyncGroupResponse_v0(error, assignment)

    async def _heartbeat(self, request: Any, here: tuple[str, int]) -> Any:
        return group.HeartbeatResponse_v0(
            self._group(request.group).heartbeat(request.member_id, request.generation_id)
        )

    async def _leave(self, request: Any, here: tuple[str, int]) -> Any:
        return group.LeaveGroupResponse_v0(self._group(request.group).leave(request.member_id))

    async def _commit(self, request: Any, here: tuple[str, int]) -> Any:
        places = {(name, n): (place, note or "") for name, parts in request.topics for n, place, note in parts}
        error = self._group(request.consumer_group).commit(
            request.consumer_id, request.consumer_group_generation_id, places
        )
        return commit.OffsetCommitResponse_v2(
            [(name, [(number, error) for number, *_ in parts]) for name, parts in request.topics]
        )

    async def _committed(self, request: Any, here: tuple[str, int]) -> Any:
        known = self._group(request.consumer_group).offsets
        wanted: dict[str, list[int]] = {}
        for name, number in known if request.topics is None else ((t, n) for t, ns in request.topics for n in ns):
            wanted.setdefault(name, []).append(number)
        topics = [
            (name, [(n, *known.get((name, n), (NO_OFFSET, "")), NO_ERROR) for n in numbers])
            for name, numbers in wanted.items()
        ]
        return commit.OffsetFetchResponse_v2(topics, NO_ERROR)


async def _main(host: str, port: int, memory_mb: int) -> None:
    broker, stopping = Broker(memory_mb), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    expiring = asyncio.create_task(broker.expire())
    server = await asyncio.start_server(broker.serve, host, port, limit=1024 * 1024)
    gc.collect()
    gc.freeze()
    await stopping.wait()
    expiring.cancel()
    server.close()


def run(host: str, port: int, memory_mb: int) -> None:
    """Serve until SIGTERM or SIGINT; blocking."""
    configure_logging("broker", "INFO")
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_main(host, port, memory_mb))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
