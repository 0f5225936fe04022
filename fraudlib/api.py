"""The HTTP door: takes transactions, answers once the broker has them, and shows the alerts as they come."""

import asyncio
import contextlib
import logging
import re
import signal
import time
from collections.abc import AsyncIterable, AsyncIterator
from importlib import resources
from types import FrameType
from typing import Annotated, Any, Final

import orjson
import uvicorn
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from fraudlib import __version__, problems
from fraudlib.backlog import Backlog
from fraudlib.broker import listener
from fraudlib.bulk import Bulk, lines_of
from fraudlib.deadlines import Protocol
from fraudlib.feeds import AlertFeed, ScoreFeed
from fraudlib.gate import Endpoint, Gate
from fraudlib.idempotency import Answers
from fraudlib.intake import outcome_problem, parse_object, prepare
from fraudlib.kafka import NotSentError, OutcomeUnknownError
from fraudlib.link import Link
from fraudlib.manifest import now
from fraudlib.problems import Problem, retry_later
from fraudlib.records import ID_PATTERN, is_id
from fraudlib.schema import TOPIC_LABELS, TOPIC_TRANSACTIONS
from fraudlib.settings import Settings
from fraudlib.telemetry import CONTENT_TYPE, ApiMetrics, calm_collector, configure_logging
from fraudlib.transaction import EXAMPLE, FULL_EXAMPLE, Accepted, Items, Label, ProblemDetails, Scored, Transaction

log = logging.getLogger(__name__)

ARRAY_BYTES: Final = 8_388_608
DRAIN_SECONDS: Final = 5
ROUTES: Final = frozenset(
    {"/", "/transaction", "/transactions", "/labels", "/alerts", "/healthz", "/readyz", "/metrics", "/docs"}
    | {"/openapi.json"}
)

_wait = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(\d{1,6}(?:\.\d{1,3})?)"?\s*(?:$|[,;])').search
_is_plain_name = re.compile(r"[A-Za-z0-9_ -]{1,64}", re.ASCII).fullmatch

_PROBLEM: Final[dict[str, Any]] = {"model": ProblemDetails}
_FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    400: _PROBLEM | {"description": "cannot be read"},
    408: _PROBLEM | {"description": "the body came too slowly"},
    413: _PROBLEM | {"description": "too large"},
    415: _PROBLEM | {"description": "another media type"},
    422: _PROBLEM | {"description": "cannot be a record; `errors` names the fields"},
    429: _PROBLEM | {"description": "the workers lag behind; nothing was taken, see Retry-After"},
    503: _PROBLEM | {"description": "not taken, for certain; see Retry-After"},
    504: _PROBLEM | {"description": "outcome-unknown: taken or not; the same transaction_id may be sent again"},
}


class Services:
    """What the routes share for the life of the app."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self.settings = settings
        self.metrics = ApiMetrics(registry)
        self.answers = Answers(settings)
        self.scores = ScoreFeed(settings)
        self.alerts = AlertFeed(settings)
        self.backlog = Backlog(settings, self.metrics)
        self.link = Link(settings, self.metrics, self._restart_feeds)

    def _restart_feeds(self) -> None:
        self.scores.restart()
        self.alerts.restart()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the link and the feeds alive."""
        tasks = [asyncio.create_task(part.run()) for part in (self.link, self.scores, self.alerts, self.backlog)]
        try:
            yield
        finally:
            self.alerts.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=DRAIN_SECONDS)

    def require_broker(self) -> None:
        """Refuse at once what cannot be sent."""
        if not self.link.is_up:
            raise Problem(
                503, "the broker does not answer; nothing was taken, try again", "not-sent", {"Retry-After": "2"}
            )

    async def send(self, topic: str, transaction_id: str, message: bytes) -> None:
        """Publish one message; a problem says what is known of its outcome."""
        try:
            with self.metrics.publish.time():
                await self.link.publisher.send(topic, transaction_id.encode(), message)
        except (NotSentError, OutcomeUnknownError) as err:
            raise outcome_problem(err) from err


class _Gated(FastAPI):
    """The framework behind the gate, which answers what comes most often by itself."""

    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate(scope, receive, send)

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the gate lets through."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, registry: CollectorRegistry | None = None) -> FastAPI:
    """The API as an ASGI app.

    Parameters
    ----------
    settings : Settings
    registry : of the metrics; a fresh one by default.
    """
    services = Services(settings, registry or CollectorRegistry())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with services.running():
            yield

    app = _Gated(
        title="fraudlib",
        version=__version__,
        summary="Taxi transactions in, fraud scores and alerts out",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    problems.install(app)
    direct = {"/transaction": _add_transaction(app, services), "/transactions": _add_transactions(app, services)}
    app.gate = Gate(app.pass_on, settings, services.metrics, ROUTES, direct)
    _add_labels(app, services)
    _add_alerts(app, services)
    _add_state(app, services)
    return app


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


def _require_media(request: Request, *allowed: str) -> str:
    """Media type of the request's body."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    kind, parameters = kind.strip().lower(), parameters.replace(" ", "").replace('"', "").lower()
    if kind not in allowed or parameters not in ("", "charset=utf-8"):
        raise Problem(415, f"expected Content-Type {' or '.join(allowed)} in UTF-8")
    return kind


def _wait_seconds(request: Request, most: float) -> float | None:
    """Seconds of `Prefer: wait=N`, at most `most`; None where nothing is preferred."""
    found = _wait(request.headers.get("prefer", ""))
    return min(float(found[1]), most) if found else None


def _given_id(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip().removeprefix('"').removesuffix('"')
    if not is_id(key):
        raise Problem(400, "expected an Idempotency-Key of 1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    return key


def _body(model_schema: dict[str, Any], *media: str, examples: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {"schema": model_schema} | ({"examples": examples} if examples else {})
    return {"requestBody": {"required": True, "content": dict.fromkeys(media, content)}}


def _add_transaction(app: FastAPI, services: Services) -> Endpoint:
    examples = {"three fields": {"value": EXAMPLE}, "as the TLC writes it": {"value": FULL_EXAMPLE}}

    @app.post(
        "/transaction",
        status_code=202,
        response_model=Accepted,
        responses={
            200: {"model": Scored, "description": "`Prefer: wait=N` was met: the score"},
            409: _PROBLEM | {"description": "the first request with this Idempotency-Key is under way"},
            **_FAILURES,
        },
        openapi_extra=_body(Transaction.model_json_schema(), "application/json", examples=examples)
        | {
            "parameters": [
                {"in": "header", "name": "Prefer", "schema": {"type": "string"}, "description": "wait=N seconds"},
                {"in": "header", "name": "Idempotency-Key", "schema": {"type": "string", "pattern": ID_PATTERN}},
            ]
        },
    )
    async def post_transaction(request: Request) -> Response:
        """Take one transaction; 202 once the broker has it, with `Prefer: wait=N` 200 with its score.

        The same Idempotency-Key, which is also the transaction's identity, with the same body gets the same answer
        and sends nothing twice, as long as this process remembers it.
        """
        services.backlog.require_room()
        _require_media(request, "application/json")
        wait, key = _wait_seconds(request, services.settings.max_wait_seconds), _given_id(request)
        body = await request.body()
        if key is None:
            return await _take(services, body, None, wait)
        return await services.answers.once(key, body, lambda: _take(services, body, key, wait))

    return post_transaction


async def _take(services: Services, body: bytes, given_id: str | None, wait: float | None) -> Response:
    """Check and send one transaction, and wait for its score at most `wait` seconds; None does not wait."""
    try:
        transaction_id, message, ignored = prepare(parse_object(body), given_id)
    except Problem:
        services.metrics.items.labels("invalid").inc()
        raise
    services.require_broker()
    answer: dict[str, Any] = {"transaction_id": transaction_id, "status": "accepted"}
    if names := [name for name in ignored if _is_plain_name(name)][:10]:
        answer["ignored"] = names
    if wait is None:
        await _accept(services, transaction_id, message)
        return _json(answer, 202)
    headers = {"Preference-Applied": f"wait={wait:g}"}
    end = time.monotonic() + wait
    future = await services.scores.expect(transaction_id)
    try:
        # However short the wait is, nothing is called accepted before the broker has it.
        await _accept(services, transaction_id, message)
        async with asyncio.timeout(max(0.0, end - time.monotonic())):
            score = orjson.loads(await future)
    except TimeoutError:
        return _json(answer, 202, headers)
    finally:
        services.scores.forget(transaction_id, future)
    return _json(score | answer | {"status": "scored"}, 200, headers)


async def _accept(services: Services, transaction_id: str, message: bytes) -> None:
    try:
        await services.send(TOPIC_TRANSACTIONS, transaction_id, message)
    except Problem as problem:
        services.metrics.items.labels("not_sent" if problem.status == 503 else "unknown").inc()
        raise
    services.metrics.items.labels("accepted").inc()


def _add_transactions(app: FastAPI, services: Services) -> Endpoint:
    one = Transaction.model_json_schema()
    body = _body(one, "application/x-ndjson")
    body["requestBody"]["content"] |= {"application/json": {"schema": {"type": "array", "items": one}}}

    @app.post(
        "/transactions",
        status_code=202,
        response_model=Items,
        responses={207: {"model": Items, "description": "some were taken; see each result"}, **_FAILURES},
        openapi_extra=body,
    )
    async def post_transactions(request: Request) -> Response:
        """Take many transactions, NDJSON or a JSON array; each gets its own result, a bad one sinks no other."""
        services.backlog.require_room()
        kind = _require_media(request, "application/x-ndjson", "application/json")
        if "idempotency-key" in request.headers:
            raise Problem(400, "expected no Idempotency-Key here; give every transaction its own transaction_id")
        services.require_broker()
        bulk = Bulk(services.link.publisher, services.metrics)
        try:
            if kind == "application/json":
                await _take_array(request, bulk)
            else:
                async for lines in lines_of(request.stream(), services.settings.max_body_bytes):
                    await bulk.take_lines(lines)
        except Problem as problem:
            await bulk.finish()
            if bulk.accepted or bulk.failed:
                problem.members |= bulk.summary()
            raise
        await bulk.finish()
        return _bulk_answer(bulk)

    return post_transactions


async def _take_array(request: Request, bulk: Bulk) -> None:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > ARRAY_BYTES:
            raise Problem(413, f"expected an array of at most {ARRAY_BYTES} bytes; send more as NDJSON")
    await bulk.take_array(bytes(body))


def _bulk_answer(bulk: Bulk) -> Response:
    if not (bulk.accepted or bulk.failed):
        raise Problem(400, "expected at least one transaction")
    summary = bulk.summary()
    if bulk.accepted:
        return _json(summary, 207 if bulk.failed else 202)
    if "outcome-unknown" in bulk.statuses:
        raise Problem(504, "no transaction was acknowledged; see each result", **summary)
    if "not-sent" in bulk.statuses:
        raise Problem(503, "no transaction was sent; try again", "not-sent", {"Retry-After": "1"}, **summary)
    raise Problem(422, "no item can be a transaction; see each result", **summary)


def _add_labels(app: FastAPI, services: Services) -> None:
    @app.post(
        "/labels",
        status_code=202,
        response_model=Accepted,
        responses=_FAILURES,
        openapi_extra=_body(Label.model_json_schema(), "application/json"),
    )
    async def post_label(request: Request) -> Response:
        """Take an analyst's verdict on a transaction, for the next training."""
        _require_media(request, "application/json")
        try:
            label = Label.model_validate(parse_object(await request.body()))
        except ValidationError as err:
            errors = [{"field": str(e["loc"][0]), "problem": e["type"].replace("_", " ")} for e in err.errors()]
            names = ", ".join(sorted({e["field"] for e in errors if e["field"] in Label.model_fields}))
            raise Problem(422, f"not a label; see /docs for {names or 'its fields'}", "invalid-label") from err
        services.require_broker()
        message = orjson.dumps(label.model_dump(exclude_none=True) | {"labeled_at": now()})
        await services.send(TOPIC_LABELS, label.transaction_id, message)
        services.metrics.labels.labels(label.verdict).inc()
        return _json({"transaction_id": label.transaction_id, "status": "accepted"}, 202)


def _add_alerts(app: FastAPI, services: Services) -> None:
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


def _add_state(app: FastAPI, services: Services) -> None:
    page = resources.files("fraudlib").joinpath("static/index.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def get_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Cache-Control": "no-cache"})

    @app.get("/healthz")
    async def get_health() -> Response:
        """Alive."""
        return _json({"status": "alive"})

    @app.get("/readyz", responses={503: _PROBLEM})
    async def get_ready() -> Response:
        """Ready: the broker answers."""
        services.require_broker()
        return _json({"status": "ready"})

    @app.get("/metrics")
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(services.metrics.registry), media_type=CONTENT_TYPE)


class _Server(uvicorn.Server):
    """Ends the alert streams as soon as a stop is asked for; they would hold the shutdown up otherwise."""

    services: Services

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.services.alerts.close()
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> int:
    """Serve the API until SIGTERM or SIGINT; blocking.

    Returns
    -------
    int
        0 after a requested stop.

    Raises
    ------
    ServiceError
        If the port is taken.
    """
    configure_logging("api", settings.log_level)
    sock = listener(settings.api_host, settings.api_port, "FRAUDLIB_API_PORT")
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=Protocol,
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=5,
    )
    server = _Server(config)
    server.services = app.state.services
    calm_collector()
    # uvicorn raises the signal again once it has drained; this keeps it from killing the process with it.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with sock:
            log.info("api listens", extra={"host": settings.api_host, "port": settings.api_port})
            server.run(sockets=[sock])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0
