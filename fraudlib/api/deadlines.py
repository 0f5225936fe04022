"""HTTP connections with deadlines: who does not finish a request's head, sits idle or takes no answer is let go.

uvicorn alone limits only the idle time between two requests. The body's deadline is the gate's, which can answer.
What comes while no more is admitted is refused here, before it is parsed, and the connection is not read for a moment
afterwards: who does not wait as Retry-After asks for would otherwise have those pay that were admitted.
"""

import asyncio
import os
import socket
import sys
from collections import deque
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fraudlib.api.exchange import CYCLE, is_refused
from fraudlib.api.gate import Gate
from fraudlib.api.problems import MEDIA_TYPE, Problem

HEAD_SECONDS: Final = 9.5
HEAD_BYTES: Final = 65_536
STALL_SECONDS: Final = 9.5
REFUSED_SECONDS: Final = 0.010
REFUSED_SLACK: Final = 0.002  # who is due within it is read with the others: a timer for each would cost as much again
REFUSED_MOST_SECONDS: Final = 1.0  # what Retry-After asks for
REFUSALS_A_SECOND: Final = 1550  # 3 to 6 % of a core; 64 connections have theirs within 45 ms
REFUSED_BYTES_A_SECOND: Final = 110e6  # of bodies; 16 connections with 200 KB each have theirs within 50 ms
REFUSED_BYTES_MOST: Final = 262_144  # that count of one: a head alone may announce many more, and all wait in one line
PEEK_BYTES: Final = 4096  # of a refused connection's next request, enough for a head
_DISCARDED: Final = bytearray(262_144)  # never written to: the kernel only wants to know that there is room
_CAN_DISCARD: Final = sys.platform == "linux"
_MOST_DIGITS: Final = 18  # of a length
_PATHS: Final = {b"POST %s HTTP/1.1" % path.encode(): path for path in ("/transaction", "/transactions")}


def plain_post(data: bytes) -> tuple[str, int] | None:
    """Path of a plain POST of transactions that begins with the bytes, and how much of it is still to come; else None.

    None wherever there is any doubt: another route, a head that has not come whole, that could be read in two ways or
    asks for something more, or bytes beyond the request.

    Examples
    --------
    >>> plain_post(b"POST /transaction HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    ('/transaction', 0)
    """
    end = data.find(b"\r\n\r\n")
    path = _PATHS.get(data[: data.find(b"\r\n")])
    if path is None or end < 0:
        return None
    head = data[:end].lower()
    # Spelt out, as are the steps after it: every refusal takes them.
    if b"transfer-encoding" in head or b"connection:" in head or b"expect:" in head or b"upgrade" in head:
        return None
    before, _, rest = head.partition(b"\r\ncontent-length:")
    length = rest.partition(b"\r\n")[0].strip(b" ")
    if not length.isdigit() or len(length) > _MOST_DIGITS or b"content-length" in before or b"content-length" in rest:
        return None
    to_come = int(length) - (len(data) - end - 4)
    return None if to_come < 0 else (path, to_come)


def _discard(fd: int, count: int) -> int:
    """Drop so many bytes that have come for a TCP socket, in the kernel and without a copy; how many there were.

    Linux only, see MSG_TRUNC in tcp(7).
    """
    left = count
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    try:
        while left and (got := sock.recv_into(_DISCARDED, min(left, len(_DISCARDED)), socket.MSG_TRUNC)):
            left -= got
    except OSError:  # nothing more for now; what is wrong with the connection its transport will find
        pass
    finally:
        sock.detach()
    return count - left


def _bare_fd(transport: asyncio.Transport) -> int | None:
    """Where a transport's bytes come from as they are; None where they do not, or cannot be discarded."""
    sock = transport.get_extra_info("socket")
    if not _CAN_DISCARD or sock is None or transport.get_extra_info("sslcontext") is not None:
        return None
    return int(sock.fileno()) if sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _first_bytes(fd: int) -> bytes:
    """What has come first for a socket, at most PEEK_BYTES; empty where nothing has, or something is wrong with it."""
    try:
        return os.read(fd, PEEK_BYTES)
    except OSError:
        return b""


class _Refused:
    """Connections that are not read for a moment: longer the more there are and the more they send, so that refusing
    never takes much time.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Protocol]] = deque()
        self._latest = 0.0
        self._has_timer = False

    def add(self, protocol: "Protocol", size: int = 0) -> None:
        """Read it again after REFUSED_SECONDS, or when it is its turn among many, within REFUSED_MOST_SECONDS.

        Parameters
        ----------
        size : bytes of the refused body that were still to come.
        """
        now = protocol.loop.time()
        turn = self._latest + 1 / REFUSALS_A_SECOND + min(size, REFUSED_BYTES_MOST) / REFUSED_BYTES_A_SECOND
        self._latest = max(now + REFUSED_SECONDS, turn)
        self._latest = min(self._latest, now + REFUSED_MOST_SECONDS)
        self._waiting.append((self._latest, protocol))
        if not self._has_timer:
            self._has_timer = True
            protocol.loop.call_at(self._latest, self._read_again, protocol.loop)

    def _read_again(self, loop: asyncio.AbstractEventLoop) -> None:
        soon = loop.time() + REFUSED_SLACK
        while self._waiting and self._waiting[0][0] <= soon:
            _, protocol = self._waiting.popleft()
            protocol.read_again()
        self._has_timer = bool(self._waiting)
        if self._has_timer:
            loop.call_at(self._waiting[0][0] + REFUSED_SLACK, self._read_again, loop)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with a deadline for each request's head and for an answer that nobody takes.

    Attributes
    ----------
    head_seconds : from the connection's start or the last answer to the end of the next head.
    head_bytes : most bytes of a head.
    stall_seconds : longest time in which nothing of a waiting answer goes out.
    """

    head_seconds = HEAD_SECONDS
    head_bytes = HEAD_BYTES
    stall_seconds = STALL_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None  # when the connection is closed, where a head is expected
        self._answered = 0.0
        self._is_idle = False
        self._step = 0.0
        self._head_read = 0
        # Of the server, as its loop is.
        self._refused: _Refused = vars(self.server_state).setdefault("refused", _Refused())
        self._unread = 0  # bytes to come of a body that nobody waits for
        self._fd: int | None = None  # to read from past the transport, while that does not
        self._stall_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._gate: Gate | None = getattr(self.app, "gate", None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head."""
        super().connection_made(transport)
        self._fd = _bare_fd(transport)
        # No deadline that is set later comes before this step has passed: one timer does for all of them.
        self._step = min(self.timeout_keep_alive, self.head_seconds)
        self._expect_head(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._due = self._fd = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; a head without end is refused, and so is a transaction that is not admitted."""
        if self._unread:
            unread = self._unread
            self._unread = max(0, unread - len(data))
            if self._unread:
                return
            self._expect_next()
            if not (data := data[unread:]):
                return
        if not self._is_refused(data):
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._due = self._answered + self.head_seconds
        # The rest of a body that was answered before its end is no part of a head.
        is_rest = self.cycle is not None and self.cycle.more_body
        super().data_received(data)
        if self._due is not None and not is_rest:
            self._head_read += len(data)
            if self._head_read > self.head_bytes and not self.transport.is_closing():
                self.send_400_response(f"expected a head of at most {self.head_bytes} bytes")

    def _is_refused(self, data: bytes) -> bool:
        """Whether the bytes were a request that is not admitted, which has its answer then."""
        gate = self._gate
        if gate is None or not gate.is_full or not self._is_between_requests():
            return False
        post = plain_post(data)
        if post is None or (refusal := gate.refuse(*post)) is None:
            return False
        self.server_state.total_requests += 1
        self.transport.write(refusal)
        self._expect_next()
        self._pause(post[1])
        self._unread = post[1]
        if self._unread:
            self._discard_unread()
        return True

    def read_again(self) -> None:
        """Read a connection that was not read for a moment.

        Looked at here rather than by the event loop: where it is refused again it need not be watched in between, and
        a body that nobody wants is not copied.
        """
        if self.transport.is_closing():
            return
        if self._unread:
            self._discard_unread()
        data = b"" if self._unread or self._fd is None else _first_bytes(self._fd)
        if data and self._is_refused(data):
            return
        self.flow.resume_reading()
        if data:
            self._parse(data)

    def _discard_unread(self) -> None:
        if self._fd is not None:
            self._unread -= _discard(self._fd, self._unread)
        if not self._unread:
            self._expect_next()

    def _expect_next(self) -> None:
        self._expect_head(self._step)
        self._is_idle = True

    def _pause(self, size: int = 0) -> None:
        self.flow.pause_reading()
        self._refused.add(self, size)

    def _is_between_requests(self) -> bool:
        if self._due is None or self._head_read or self.flow.write_paused or self.transport.is_closing():
            return False
        # Where the answer came before the body's end, what comes next is still that body.
        return self.cycle is None or not self.cycle.more_body

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, as a problem; whole requests before it get their answers first."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = bytes(Problem(400, "expected an HTTP/1.1 request, found something else").response().body)
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is there in time."""
        self._due, self._head_read = None, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there; where its answer was given before, the next request may come now."""
        super().on_message_complete()
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and cycle.more_body:
            cycle.more_body = False
            self._expect_next()

    def on_response_complete(self) -> None:
        """Start the next request where its head has come already, and expect one otherwise.

        uvicorn's own makes and drops a timer for every answer.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._running is not None and is_refused(self._running):
            self._pause()
        else:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._expect_next()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.scope[CYCLE] = cycle  # type: ignore[typeddict-unknown-key]
        if self._gate is not None:
            self._gate.announce(cycle.scope["method"], cycle.scope["path"])
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The client does not keep up with the answer."""
        super().pause_writing()
        self._watch_stall(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client took most of the answer."""
        self._end_stall()
        super().resume_writing()

    def _expect_head(self, seconds: float) -> None:
        self._answered = self.loop.time()
        self._due = self._answered + seconds
        if self._timer is None:
            self._timer = self.loop.call_later(self._step, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        left = self._due - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(min(left, self._step), self._look)
        else:
            # A close lets a waiting answer go out first; that one has its own deadline.
            self.transport.close()

    def _watch_stall(self, size: int) -> None:
        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left >= size:
                self._drop()
            else:
                self._watch_stall(left)

        self._stall_timer = self.loop.call_later(self.stall_seconds, look)

    def _drop(self) -> None:
        # Answers that are still being made are told so, or they would write to what is closed.
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
        self.transport.abort()

    def _end_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
