"""The gate before every route: how much may come in at once, how large and how slowly, and how long it took.

The routes that everything comes through are called from here, past the framework's routing and its dependencies, which
cost more than all else about one transaction; in the framework they stand for the documentation.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from fraudlib.api.access import Access
from fraudlib.api.exchange import CYCLE, Arrived, answer_at_once, arrived_body, refuse
from fraudlib.api.problems import Problem, failure, retry_later
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[Response]]
Cycle = RequestResponseCycle | None

log = logging.getLogger(__name__)

BODY_SECONDS: Final = 9.5
BODY_BYTES_A_SECOND: Final = 16_384
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


class Gate:
    """ASGI middleware.

    Parameters
    ----------
    app : what lies behind the gate.
    settings, metrics : of the API.
    routes : paths that may name themselves in metrics.
    direct : paths whose POST is answered by these endpoints, without the app.
    access : decides who may come in; by default as the settings say.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        metrics: ApiMetrics,
        routes: frozenset[str],
        direct: Mapping[str, Endpoint] | None = None,
        access: Access | None = None,
    ) -> None:
        self._app, self._settings, self._metrics, self._routes = app, settings, metrics, routes
        self._direct, self._access = direct or {}, access or Access(settings)
        self._clocks: dict[tuple[str, str, int], Any] = {}
        self._in_flight = {"": 0, "/transactions": 0}
        self._announced = {"": 0, "/transactions": 0}
        self._refusal = _as_bytes(_too_many().response())

    @property
    def is_full(self) -> bool:
        """Whether there is a route that no more requests are admitted to."""
        of, coming, settings = self._in_flight, self._announced, self._settings
        return (
            of[""] + coming[""] >= settings.max_in_flight
            or of["/transactions"] + coming["/transactions"] >= settings.max_bulk_in_flight
        )

    def announce(self, method: str, path: str) -> None:
        """Count a request that the server has read and is about to hand over, which it does with CYCLE in its scope.

        Of many that come at once, those that are too many are then refused before they are parsed.
        """
        if method == "POST":
            self._announced[_room(path)] += 1

    def refuse(self, path: str, to_come: int) -> bytes | None:
        """The whole answer to a POST of transactions that is not admitted, which is counted; None where it may be.

        Parameters
        ----------
        to_come : bytes of its body; where these alone are too many the refusal is another.
        """
        room, most, limit = self._limits(path)
        if self._in_flight[room] + self._announced[room] < most or to_come > limit:
            return None
        self._clock(path, "POST", 503).observe(0.0)
        return self._refusal

    def _limits(self, path: str) -> tuple[str, int, int]:
        """What a route's requests are counted under, how many may be under way, and how long their bodies may be."""
        s = self._settings
        if room := _room(path):
            return room, s.max_bulk_in_flight, s.max_batch_body_bytes
        return room, s.max_in_flight, s.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 500
        # Taken out, as the cycle holds the scope.
        cycle = scope.pop(CYCLE, None)
        if cycle is not None and scope["method"] == "POST":
            self._announced[_room(scope["path"])] -= 1
        try:
            if problem := self._access.refusal(scope):
                status = await _reply(problem.response(), cycle, scope, receive, send)
            elif scope["method"] == "POST":
                status = await self._admitted(scope, cycle, receive, send)
            else:
                status = await _through(self._app, scope, receive, send)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/alerts":  # a stream's length says nothing about the service
            return
        route = path if path in self._routes else "other"
        self._clock(route, method if method in _METHODS else "other", status).observe(seconds)

    def _clock(self, *labels: Any) -> Any:
        # Looking labels up takes the metric's lock and longer than what it measures.
        if labels not in self._clocks:
            self._clocks[labels] = self._metrics.request.labels(*map(str, labels))
        return self._clocks[labels]

    async def _admitted(self, scope: Scope, cycle: Cycle, receive: Receive, send: Send) -> int:
        path = scope["path"]
        room, most, limit = self._limits(path)
        if self._in_flight[room] >= most:
            refuse(cycle)
            return await _reply(_too_many().response(), cycle, scope, receive, send)
        if _declared_length(scope) > limit:
            return await _reply(_too_large(limit).response(), cycle, scope, receive, send)
        self._in_flight[room] += 1
        self._metrics.in_flight.inc()
        try:
            endpoint = self._direct.get(path)
            if endpoint is None:
                return await _through(self._app, scope, _Measured(receive, limit), send)
            return await _answer(endpoint, scope, cycle, receive, send, limit)
        finally:
            self._in_flight[room] -= 1
            self._metrics.in_flight.dec()


def _room(path: str) -> str:
    """What a route's requests are counted under."""
    return path if path == "/transactions" else ""


async def _answer(endpoint: Endpoint, scope: Scope, cycle: Cycle, receive: Receive, send: Send, limit: int) -> int:
    body = arrived_body(cycle)
    try:
        if body is None:
            request = Request(scope, _Measured(receive, limit))
        elif len(body) > limit:
            raise _too_large(limit)
        else:
            request = Arrived(scope, body)
        response = await endpoint(request)
    except Problem as problem:
        response = problem.response()
    except ClientDisconnect:
        return 500
    except Exception:
        log.exception("request failed")
        response = failure().response()
    return await _reply(response, cycle, scope, receive, send)


async def _reply(response: Response, cycle: Cycle, scope: Scope, receive: Receive, send: Send) -> int:
    if not answer_at_once(cycle, response):
        await response(scope, receive, send)
    return response.status_code


async def _through(app: App, scope: Scope, receive: Receive, send: Send) -> int:
    """Status of what the app answers."""
    status = 500

    async def noting_send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    await app(scope, receive, noting_send)
    return status


class _Measured:
    """A receive that stops a body which is too long or too slow, before it is buffered.

    A body may be waited for BODY_SECONDS, and a second more for every BODY_BYTES_A_SECOND that have come: a large one
    on a slow line passes, and a trickle does not. Time in which nobody asked for more is not counted.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._read, self._done = receive, limit, 0, False
        self._waited = 0.0

    async def __call__(self) -> Message:
        if self._done:
            return await self._receive()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(BODY_SECONDS + self._read / BODY_BYTES_A_SECOND - self._waited):
                message = await self._receive()
        except TimeoutError:
            raise Problem(
                408, "the body came too slowly to wait for its end; send it again", headers={"Connection": "close"}
            ) from None
        self._waited += time.perf_counter() - started
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._done = not message.get("more_body", False)
            if self._read > self._limit:
                raise _too_large(self._limit)
        return message


def _too_many() -> Problem:
    return retry_later("too many requests are under way; nothing was taken, try again", "too-many-in-flight")


def _as_bytes(response: Response) -> bytes:
    lines = [STATUS_LINE[response.status_code]]
    for name, value in response.raw_headers:
        lines += (name, b": ", value, b"\r\n")
    return b"".join([*lines, b"\r\n", bytes(response.body)])


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _too_large(limit: int) -> Problem:
    return Problem(413, f"expected a body of at most {limit} bytes; send less at once", headers={"Connection": "close"})
