"""What every route of the API reads, answers and documents in the same way."""

from typing import Any, Final

import orjson
from fastapi import Request, Response

from fraudlib.api.exchange import Json, header
from fraudlib.api.problems import MEDIA_TYPE, Problem
from fraudlib.wire.transaction import ProblemDetails

PROBLEM: Final[dict[str, Any]] = {"content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}}
FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    400: PROBLEM | {"description": "cannot be read"},
    401: PROBLEM | {"description": "no key, where the operator asks for one"},
    403: PROBLEM | {"description": "the key was made for other things"},
    408: PROBLEM | {"description": "the body came too slowly"},
    413: PROBLEM | {"description": "too large"},
    415: PROBLEM | {"description": "another media type"},
    422: PROBLEM | {"description": "cannot be a record; `errors` names the fields"},
    429: PROBLEM
    | {"description": "the workers lag behind, or this client sends too much; nothing was taken, see Retry-After"},
    503: PROBLEM | {"description": "not taken, for certain; see Retry-After"},
    504: PROBLEM | {"description": "outcome-unknown: taken or not; the same transaction_id may be sent again"},
}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(orjson.dumps(value), status, headers, Json.media_type) if headers else Json(value, status)


def require_media(request: Request, *allowed: str) -> str:
    """Media type of the request's body."""
    given = header(request, b"content-type") or ""
    if given in allowed:
        return given
    kind, _, parameters = given.partition(";")
    kind, parameters = kind.strip().lower(), parameters.replace(" ", "").replace('"', "").lower()
    if kind not in allowed or parameters not in ("", "charset=utf-8"):
        raise Problem(415, f"expected Content-Type {' or '.join(allowed)} in UTF-8")
    return kind


def body_of(model_schema: dict[str, Any], *media: str, examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """OpenAPI of a required body in any of some media types."""
    content = {"schema": model_schema} | ({"examples": examples} if examples else {})
    return {"requestBody": {"required": True, "content": dict.fromkeys(media, content)}}
