"""The HTTP door: takes transactions, answers once the broker has them, and shows the alerts as they come."""

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from types import FrameType
from typing import Final

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from fraudlib import __version__
from fraudlib.api import problems
from fraudlib.api.access import require_safe_address
from fraudlib.api.deadlines import Protocol
from fraudlib.api.gate import Gate
from fraudlib.api.pages import add_pages
from fraudlib.api.routes import add_alerts, add_labels, add_session, add_state
from fraudlib.api.services import DRAIN_SECONDS, Services
from fraudlib.api.submission import add_transaction, add_transactions
from fraudlib.broker.main import listener
from fraudlib.settings import Settings
from fraudlib.telemetry import calm_collector, configure_logging
from fraudlib.wire.credentials import security_options

log = logging.getLogger(__name__)

ROUTES: Final = frozenset(
    {"/", "/transaction", "/transactions", "/labels", "/alerts", "/healthz", "/readyz", "/metrics", "/docs"}
    | {"/openapi.json", "/session", "/pulse"}
)


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
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # The gate has checked the key by then; this makes the documentation ask for it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if services.access.keys else None,
    )
    app.state.services = services
    problems.install(app)
    direct = {"/transaction": add_transaction(app, services), "/transactions": add_transactions(app, services)}
    app.gate = Gate(app.pass_on, settings, services.metrics, ROUTES, direct, services.access)
    add_labels(app, services)
    add_alerts(app, services)
    add_session(app, services)
    add_state(app, services)
    add_pages(app)
    return app


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
        If a port is taken, other machines could come in without a key, or a file of the broker's access is wrong.
    DataError
        If the file of keys is not as it should be.
    """
    configure_logging("api", settings.log_level)
    require_safe_address(settings)
    security_options(settings)
    app = create_app(settings)
    socks = [listener(settings.api_host, settings.api_port, "FRAUDLIB_API_PORT")]
    if settings.api_internal_port:
        socks.append(listener(settings.metrics_host, settings.api_internal_port, "FRAUDLIB_API_INTERNAL_PORT"))
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
        log.info("api listens", extra={"host": settings.api_host, "port": settings.api_port})
        server.run(sockets=socks)
    finally:
        for sock in socks:
            sock.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0
