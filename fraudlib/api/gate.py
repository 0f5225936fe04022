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

from fraudlib.api.access import Access
from fraudlib.api.problems import Problem, failure, retry_later
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[Response]]

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, started, status = scope["path"], time.perf_counter(), 500

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if problem := self._access.refusal(scope):
                await problem.response()(scope, receive, noting_send)
            elif scope["method"] == "POST":
                await self._admitted(scope, receive, noting_send)
            else:
                await self._app(scope, receive, noting_send)
        finally:
            if path != "/alerts":  # a stream's length says nothing about the service
                route = path if path in self._routes else "other"
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._clock(route, method, status).observe(time.perf_counter() - started)

    def _clock(self, *labels: Any) -> Any:
        # Looking labels up takes the metric's lock and longer than what it measures.
        if labels not in self._clocks:
            self._clocks[labels] = self._metrics.request.labels(*map(str, labels))
        return self._clocks[labels]

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_bulk = scope["path"] == "/transactions"
        room = "/transactions" if is_bulk else ""
        most = self._settings.max_bulk_in_flight if is_bulk else self._settings.max_in_flight
        limit = self._settings.max_batch_body_bytes if is_bulk else self._settings.max_body_bytes
        problem = None
        if self._in_flight[room] >= most:
            problem = retry_later("too many requests are under way; nothing was taken, try again", "too-many-in-flight")
        elif _declared_length(scope) > limit:
            problem = _too_large(limit)
        if problem is not None:
            return await problem.response()(scope, receive, send)
        self._in_flight[room] += 1
        self._metrics.in_flight.inc()
        try:
            measured = _Measured(receive, limit)
            endpoint = self._direct.get(scope["path"])
            if endpoint is None:
                await self._app(scope, measured, send)
            else:
                await _answer(endpoint, scope, measured, send)
        finally:
            self._in_flight[room] -= 1
            self._metrics.in_flight.dec()


async def _answer(endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await endpoint(Request(scope, receive))
    except Problem as problem:
        response = problem.response()
    except ClientDisconnect:
        return
    except Exception:
        log.exception("request failed")
        response = failure().response()
    await response(scope, receive, send)


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


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _too_large(limit: int) -> Problem:
    return Problem(413, f"expected a body of at most {limit} bytes; send less at once", headers={"Connection": "close"})
