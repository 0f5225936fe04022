"""HTTP connections with deadlines: who does not finish a request's head, sits idle or takes no answer is let go.

uvicorn alone limits only the idle time between two requests. The body's deadline is the gate's, which can answer.
What comes while no more is admitted is refused here, before it is parsed: a refusal costs so little that those who
were admitted do not pay for it.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fraudlib.api.exchange import CYCLE
from fraudlib.api.gate import Gate
from fraudlib.api.problems import MEDIA_TYPE, Problem

HEAD_SECONDS: Final = 9.5
HEAD_BYTES: Final = 65_536
STALL_SECONDS: Final = 9.5
_START: Final = b"POST /transaction HTTP/1.1\r\n"
_UNUSUAL: Final = (b"transfer-encoding", b"connection:", b"expect:", b"upgrade")  # in a head, in lower case


def is_whole_transaction(data: bytes) -> bool:
    """Whether the bytes are certainly one whole `POST /transaction` of a connection that stays; in doubt they are not.

    Examples
    --------
    >>> is_whole_transaction(b"POST /transaction HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    True
    """
    if not data.startswith(_START):
        return False
    end = data.find(b"\r\n\r\n")
    head = data[:end].lower()
    if end < 0 or head.count(b"content-length") != 1 or any(name in head for name in _UNUSUAL):
        return False
    _, found, rest = head.partition(b"\r\ncontent-length:")
    length = rest.split(b"\r\n", 1)[0].strip(b" ")
    return bool(found) and length.isdigit() and len(data) - end - 4 == int(length)


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
        self._stall_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._gate: Gate | None = getattr(self.app, "gate", None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first head."""
        super().connection_made(transport)
        # No deadline that is set later comes before this step has passed: one timer does for all of them.
        self._step = min(self.timeout_keep_alive, self.head_seconds)
        self._expect_head(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request; a head without end is refused, and so is a transaction that is not admitted."""
        if self._gate is not None and self._gate.is_full and self._is_between_requests() and is_whole_transaction(data):
            self.server_state.total_requests += 1
            self.transport.write(self._gate.refuse())
            self._expect_head(self._step)
            self._is_idle = True
            return
        if self._is_idle:
            self._is_idle = False
            self._due = self._answered + self.head_seconds
        super().data_received(data)
        if self._due is not None:
            self._head_read += len(data)
            if self._head_read > self.head_bytes and not self.transport.is_closing():
                self.send_400_response(f"expected a head of at most {self.head_bytes} bytes")

    def _is_between_requests(self) -> bool:
        if self._due is None or self._head_read or self.flow.write_paused or self.transport.is_closing():
            return False
        # Where the answer came before the body's end, what comes next may still be that body.
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

    def on_response_complete(self) -> None:
        """Start the next request where its head has come already, and expect one otherwise.

        uvicorn's own makes and drops a timer for every answer.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._expect_head(self._step)
            self._is_idle = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.scope[CYCLE] = cycle  # type: ignore[typeddict-unknown-key]
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
