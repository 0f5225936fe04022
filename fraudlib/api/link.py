"""The API's link to the broker: made with patience, watched, and made anew when it went bad."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from fraudlib.broker.main import ensure_topics
from fraudlib.errors import ServiceError
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire.credentials import NOT_CONNECTED, refusal
from fraudlib.wire.kafka import Publisher

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 1.0


class Link:
    """Holds a publisher connected.

    Parameters
    ----------
    settings, metrics : of the API.
    on_up : called whenever the broker answers after it did not; a broker in memory comes back empty.
    """

    def __init__(self, settings: Settings, metrics: ApiMetrics, on_up: Callable[[], None]) -> None:
        self.publisher = Publisher(settings)
        self.is_up = False
        self._settings, self._metrics, self._on_up = settings, metrics, on_up

    async def run(self) -> None:
        """Connect and stay connected until cancelled."""
        pause = 0.1
        try:
            while True:
                try:
                    await ensure_topics(self._settings)
                    await self.publisher.start()
                except (*NOT_CONNECTED, ServiceError) as err:
                    self._show(False)
                    why = await refusal(self._settings) or repr(err)
                    log.warning("broker does not answer", extra={"error": why, "retry_seconds": round(pause, 1)})
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.7, 5.0)
                    continue
                pause = 0.1
                self._show(True)
                await self._watch()
                self._show(False)
                self._metrics.rebuilds.inc()
                log.warning("producer is replaced after errors")
                await self.publisher.stop(2.0)
        finally:
            self._show(False)
            await self.publisher.stop(3.0)

    async def _watch(self) -> None:
        """Probe the broker until the publisher says that it must be replaced."""
        while not self.publisher.broken.is_set():
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await self.publisher.broken.wait()
            except TimeoutError:
                up = await self.publisher.answers()
                if up and not self.is_up:
                    try:
                        await ensure_topics(self._settings)
                    except (*NOT_CONNECTED, ServiceError):
                        up = False
                self._show(up)

    def _show(self, up: bool) -> None:
        if up != self.is_up:
            log.info("broker answers" if up else "broker is gone")
            self.is_up = up
            if up:
                self._on_up()
        self._metrics.broker_up.set(up)
