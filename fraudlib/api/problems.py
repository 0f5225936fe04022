"""Errors of the API as RFC 9457 problem details; none repeats what the client sent."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

_TITLES: Final = {
    400: ("malformed-request", "The request cannot be read"),
    401: ("no-key", "A key is needed here"),
    403: ("not-allowed", "This key opens other things"),
    404: ("not-found", "There is nothing at this address"),
    405: ("method-not-allowed", "This address does not take that method"),
    408: ("too-slow", "The request did not arrive in time"),
    409: ("in-progress", "The same request is still under way"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is of another type"),
    422: ("invalid-transaction", "This cannot be a record"),
    429: ("workers-behind", "Too much has come for now"),
    500: ("internal-error", "Something failed on this side"),
    503: ("unavailable", "Not possible at the moment"),
    504: ("outcome-unknown", "The outcome is not known"),
}


class Problem(Exception):  # noqa: N818 - named as the RFC names it
    """An answer other than success.

    Parameters
    ----------
    status : HTTP status.
    detail : one sentence: what was expected, what to do.
    kind : last part of the problem's type; by default that of the status.
    headers : of the response.
    members : extension members of the problem.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind = status, detail, kind
        self.headers, self.members = dict(headers or {}), members

    def response(self) -> Response:
        """The problem as a response."""
        kind, title = _TITLES.get(self.status, ("refused", "The request was refused"))
        body = {
            "type": f"urn:fraudlib:problem:{self.kind or kind}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return Response(orjson.dumps(body), self.status, self.headers, MEDIA_TYPE)


def retry_later(detail: str, kind: str = "unavailable", seconds: int = 1) -> Problem:
    """A 503 for what was certainly not done, and may be asked for again."""
    return Problem(503, detail, kind, {"Retry-After": str(seconds)})


def failure() -> Problem:
    """A failure of this side's own."""
    return Problem(500, "the failure is in the log; the request may be tried again")


def _methods(app: FastAPI, path: str) -> list[str]:
    """Every method of an address; the framework's own answer names those of one route only."""
    routes = [route for route in app.routes if getattr(route, "path", None) == path]
    return sorted({method for route in routes for method in getattr(route, "methods", None) or ()})


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""

    async def on_problem(request: Request, err: Exception) -> Response:
        assert isinstance(err, Problem)
        return err.response()

    async def on_http(request: Request, err: Exception) -> Response:
        assert isinstance(err, HTTPException)
        _, title = _TITLES.get(err.status_code, ("", str(err.detail)))
        headers = dict(err.headers or {})
        if err.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request.scope["path"]))
        return Problem(err.status_code, f"{title}; /docs lists what there is", headers=headers).response()

    async def on_validation(request: Request, err: Exception) -> Response:
        assert isinstance(err, RequestValidationError)
        places = sorted({".".join(map(str, e["loc"][:2])) for e in err.errors()})
        return Problem(422, f"not as /docs describes it: {', '.join(places)}", "invalid-request").response()

    async def on_failure(request: Request, err: Exception) -> Response:
        return failure().response()

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_failure)
