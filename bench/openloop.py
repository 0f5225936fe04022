"""An open-loop HTTP load: every request has a due time, and waiting for anything after it counts as latency.

Plain sockets and one thread, since an event loop's timers tick in milliseconds and would show up in the result, and
since what the sender takes of the machine is missing to what is measured.
"""

import math
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

CONNECTIONS: Final = 128
ANSWER_SECONDS: Final = 10.0
LONGEST_WAIT: Final = 0.05


@dataclass
class Load:
    """What became of the requests; times are those of `time.monotonic`, in seconds.

    Attributes
    ----------
    due, answered : per request; `answered` is NaN where no answer came.
    statuses : HTTP status -> how many.
    sent : per request, when it went out.
    outcomes : HTTP status per request, 0 where no answer came.
    count : requests that were sent, the first ones.
    cores : processor time that the sender took, per second.
    """

    due: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    sent: list[float] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)
    count: int = 0
    cores: float = 0.0


class _Connection:
    """One keep-alive connection with one request under way at most."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), ANSWER_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = -1
        self._buffer = b""

    def receive(self) -> int | None:
        """Status of the answer, None while it is incomplete."""
        part = self.sock.recv(65536)
        if not part:
            raise ConnectionError("the server closed the connection before it answered")
        self._buffer += part
        head, gap, body = self._buffer.partition(b"\r\n\r\n")
        if not gap:
            return None
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        if len(body) < int(lower[at:].split(b"\r\n", 1)[0]):
            return None
        self._buffer = b""
        return int(head[9:12])


def post(path: str, body: bytes, host: str, **headers: str) -> bytes:
    """Bytes of a POST of JSON; `_` in the headers' names stands for `-`."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def run(
    host: str,
    port: int,
    requests: Sequence[bytes],
    rate: float,
    connections: int = CONNECTIONS,
    seconds: float = math.inf,
) -> Load:
    """Send requests at a steady rate whatever the answers do, over kept connections.

    Parameters
    ----------
    requests : bytes of each whole request, in order.
    rate : requests a second.
    connections : as many requests may be under way; further ones wait, which counts as latency.
    seconds : after these no more are sent.
    """
    count = len(requests)
    load = Load([0.0] * count, [float("nan")] * count, {}, [0.0] * count, [0] * count)
    pool = {c.sock.fileno(): c for c in (_Connection(host, port) for _ in range(connections))}
    numbers, idle = list(pool), deque(pool.values())
    started, used = time.monotonic() + 0.1, time.thread_time()
    load.due = [started + number / rate for number in range(count)]
    sent = answered = 0
    end = started + min(seconds, count / rate)
    try:
        while answered < count and (now := time.monotonic()) < end + ANSWER_SECONDS:
            if now > started + seconds:
                count = sent
            while idle and sent < count and load.due[sent] <= now:
                # In turn: the server closes a connection that it hears nothing of.
                connection = idle.popleft()
                connection.request = sent
                load.sent[sent] = now
                connection.sock.sendall(requests[sent])
                sent += 1
                now = time.monotonic()
            wait = min(load.due[sent] - now, LONGEST_WAIT) if idle and sent < count else LONGEST_WAIT
            # The only wait of the standard library whose limit is not in whole milliseconds.
            for number in select.select(numbers, (), (), max(0.0, wait))[0]:
                connection = pool[number]
                if (status := connection.receive()) is not None:
                    load.answered[connection.request] = time.monotonic()
                    load.outcomes[connection.request] = status
                    load.statuses[status] = load.statuses.get(status, 0) + 1
                    answered += 1
                    idle.append(connection)
        load.count = sent
        load.cores = (time.thread_time() - used) / max(time.monotonic() - started, 1e-9)
    finally:
        for connection in pool.values():
            connection.sock.close()
    return load
