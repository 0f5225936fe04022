"""A request and its answer without detours: a body that has come already, and an answer that goes out in one write.

uvicorn's protocol leaves itself in the request's scope; what it knows saves the timers, copies and checks that the
general way needs. Elsewhere, as in tests, or where the connection is not ready, everything goes the general way.
"""

from collections.abc import MutableMapping
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Scope = MutableMapping[str, Any]

CYCLE: Final = "fraudlib.cycle"
_TYPE: Final = (b"content-type", b"application/json")


class Arrived(Request):
    """A request whose whole body is there."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        super().__init__(scope)
        self._body = body


class Json(Response):
    """A response of JSON with no other headers than it needs."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int) -> None:
        self.status_code, self.background = status, None
        self.body = orjson.dumps(value)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), _TYPE]


def refuse(cycle: RequestResponseCycle | None) -> None:
    """Note that the request was not admitted, so that its connection is not read for a moment after the answer."""
    if cycle is not None:
        cycle.refused = True  # type: ignore[attr-defined]


def is_refused(cycle: RequestResponseCycle) -> bool:
    """Whether that was noted."""
    return getattr(cycle, "refused", False)


def header(request: Request, name: bytes) -> str | None:
    """Value of a header, the first one where there are more; its name in lower case."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def arrived_body(cycle: RequestResponseCycle | None) -> bytes | None:
    """The request's body, taken out, where all of it has come; None where it has to be waited for."""
    if cycle is None or cycle.more_body or cycle.disconnected:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    return body


def answer_at_once(cycle: RequestResponseCycle | None, response: Response) -> bool:
    """Write a whole answer; False, and nothing is done, where it has to go the general way.

    What the general way checks of headers need not be checked of a `Json`, whose headers are known.
    """
    if type(response) is not Json or cycle is None or cycle.response_started or cycle.access_log:
        return False
    if cycle.disconnected or cycle.flow.write_paused:
        return False
    lines = [STATUS_LINE[response.status_code]]
    for name, value in (*cycle.default_headers, *response.raw_headers):
        lines += (name, b": ", value, b"\r\n")
    lines += (b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", bytes(response.body))
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(b"".join(lines))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
