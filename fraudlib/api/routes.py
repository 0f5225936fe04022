"""The API's other routes: labels, live alerts, the page, and the state of the service."""

from collections.abc import AsyncIterable
from typing import Annotated

import orjson
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import generate_latest
from pydantic import ValidationError

from fraudlib.api.access import COOKIE
from fraudlib.api.conventions import FAILURES, PROBLEM, body_of, json_response, require_media
from fraudlib.api.intake import parse_object
from fraudlib.api.keys import SESSION_SECONDS
from fraudlib.api.problems import Problem, retry_later
from fraudlib.api.services import Services
from fraudlib.manifest import now
from fraudlib.schema import TOPIC_LABELS
from fraudlib.telemetry import CONTENT_TYPE
from fraudlib.wire.transaction import Accepted, Label, Pulse


def add_labels(app: FastAPI, services: Services) -> None:
    """Add `POST /labels`."""

    @app.post(
        "/labels",
        status_code=202,
        response_model=Accepted,
        responses=FAILURES,
        openapi_extra=body_of(Label.model_json_schema(), "application/json"),
    )
    async def post_label(request: Request) -> Response:
        """Take an analyst's verdict on a transaction, for the next training."""
        require_media(request, "application/json")
        try:
            label = Label.model_validate(parse_object(await request.body()))
        except ValidationError as err:
            errors = [{"field": str(e["loc"][0]), "problem": e["type"].replace("_", " ")} for e in err.errors()]
            names = ", ".join(sorted({e["field"] for e in errors if e["field"] in Label.model_fields}))
            raise Problem(422, f"not a label; see /docs for {names or 'its fields'}", "invalid-label") from err
        if services.name is not None:
            label = label.model_copy(update={"transaction_id": services.name(label.transaction_id)})
        services.require_broker()
        message = orjson.dumps(label.model_dump(exclude_none=True) | {"labeled_at": now()})
        await services.send(TOPIC_LABELS, label.transaction_id, message)
        services.metrics.labels.labels(label.verdict).inc()
        return json_response({"transaction_id": label.transaction_id, "status": "accepted"}, 202)


def add_alerts(app: FastAPI, services: Services) -> None:
    """Add `GET /alerts`."""

    def admit() -> None:
        if services.alerts.followers >= services.settings.max_streams:
            raise retry_later("too many clients follow the alerts; try again", "too-many-streams", 10)

    @app.get("/alerts", response_class=EventSourceResponse, dependencies=[Depends(admit)])
    async def get_alerts(
        recent: Annotated[int, Query(ge=0, le=256, description="how many of the latest to begin with")] = 0,
        last_event_id: Annotated[str | None, Header(description="go on after this event", max_length=64)] = None,
    ) -> AsyncIterable[ServerSentEvent]:
        """Alerts as they come, as server-sent events; each passes once."""
        yield ServerSentEvent(comment="the alerts follow", retry=2000)
        with services.metrics.streams.track_inprogress():
            async for alert in services.alerts.follow(last_event_id, recent):
                yield ServerSentEvent(raw_data=alert.data, id=alert.id, event="alert")


def add_session(app: FastAPI, services: Services) -> None:
    """Add `/session`, by which a browser, whose event streams cannot send a key, gets a cookie for one."""
    keys = services.access.keys

    @app.get("/session")
    async def get_session(request: Request) -> Response:
        """Whether a key is needed here, and whose this request has."""
        client = services.access.client(request.scope)
        return json_response({"is_needed": keys is not None, "client": client.name if client else None})

    @app.post("/session", status_code=204, responses={401: PROBLEM})
    async def post_session(request: Request) -> Response:
        """A cookie in place of the key of the header Authorization, for twelve hours."""
        response = Response(status_code=204)
        client = services.access.client(request.scope)
        if keys is not None and client is not None:
            is_secure = request.headers.get("x-forwarded-proto") == "https"
            token = keys.open_session(client)
            response.set_cookie(
                COOKIE, token, max_age=SESSION_SECONDS, secure=is_secure, httponly=True, samesite="strict"
            )
        return response

    @app.delete("/session", status_code=204)
    async def delete_session() -> Response:
        """Forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def add_state(app: FastAPI, services: Services) -> None:
    """Add what tells that the service is alive, ready and how it fares."""

    @app.get("/pulse", response_model=Pulse)
    async def get_pulse() -> Response:
        """Rate, latency, what waits, the bundle in use, and some of the latest scores; measured while asked for."""
        state = {"is_broker_up": services.link.is_up, "lag": services.backlog.lag}
        return json_response({**state, **services.pulse.ask()})

    @app.get("/healthz")
    async def get_health() -> Response:
        """Alive."""
        return json_response({"status": "alive"})

    @app.get("/readyz", responses={503: PROBLEM})
    async def get_ready() -> Response:
        """Ready: the broker answers."""
        services.require_broker()
        return json_response({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE)
