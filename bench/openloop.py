"""An open-loop HTTP load: every request has a due time, and waiting for anything after it counts as latency.

Plain sockets and two threads, since an event loop's timers tick in milliseconds and would show up in the result.
"""

import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

CONNECTIONS: Final = 128
ANSWER_SECONDS: Final = 10.0


@dataclass
class Load:
    """What became of the requests; times are those of `time.monotonic`, in seconds.

    Attributes
    ----------
    due, answered : per request; `answered` is NaN where no answer came.
    statuses : HTTP status -> how many.
    sent : per request, when it went out.
    outcomes : HTTP status per request, 0 where no answer came.
    """

    due: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    sent: list[float] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)


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


def run(host: str, port: int, requests: Sequence[bytes], rate: float, connections: int = CONNECTIONS) -> Load:
    """Send requests at a steady rate whatever the answers do, over kept connections.

    Parameters
    ----------
    requests : bytes of each whole request, in order.
    rate : requests a second.
    connections : as many requests may be under way; further ones wait, which counts as latency.
    """
    load = Load([0.0] * len(requests), [float("nan")] * len(requests), {}, [0.0] * len(requests), [0] * len(requests))
    pool = [_Connection(host, port) for _ in range(connections)]
    idle, done, left = deque(pool), threading.Semaphore(len(pool)), threading.Event()
    selector = selectors.DefaultSelector()
    for connection in pool:
        selector.register(connection.sock, selectors.EVENT_READ, connection)

    def receive() -> None:
        count = 0
        while count < len(requests) and not left.is_set():
            for key, _ in selector.select(0.2):
                connection = key.data
                if (status := connection.receive()) is not None:
                    load.answered[connection.request] = time.monotonic()
                    load.outcomes[connection.request] = status
                    load.statuses[status] = load.statuses.get(status, 0) + 1
                    count += 1
                    idle.append(connection)
                    done.release()

    previous = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    try:
        start = time.monotonic() + 0.1
        for number, request in enumerate(requests):
            due = load.due[number] = start + number / rate
            if (ahead := due - time.monotonic()) > 0:
                time.sleep(ahead)
            done.acquire()
            connection = idle.popleft()
            connection.request = number
            load.sent[number] = time.monotonic()
            connection.sock.sendall(request)
        receiver.join(ANSWER_SECONDS)
    finally:
        left.set()
        receiver.join()
        sys.setswitchinterval(previous)
        selector.close()
        for connection in pool:
            connection.sock.close()
    return load
