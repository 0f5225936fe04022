"""What the API's routes share: the link to the broker, what is read back from it, and what is remembered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from prometheus_client import CollectorRegistry

from fraudlib.api.access import Access
from fraudlib.api.backlog import Backlog
from fraudlib.api.feeds import AlertFeed, ScoreFeed
from fraudlib.api.idempotency import Answers
from fraudlib.api.intake import outcome_problem
from fraudlib.api.link import Link
from fraudlib.api.problems import Problem
from fraudlib.api.pseudonyms import pseudonyms
from fraudlib.api.pulse import Pulse
from fraudlib.settings import Settings
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError

DRAIN_SECONDS: Final = 5


class Services:
    """What the routes share for the life of the app.

    Attributes
    ----------
    name : makes the name under which a transaction goes on of the id that it has, None where that is the id.
    """

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self.settings = settings
        self.metrics = ApiMetrics(registry)
        self.access = Access(settings)
        hidden = pseudonyms(settings)
        self.name = hidden.of if hidden else None
        self.answers = Answers(settings)
        self.scores = ScoreFeed(settings)
        self.alerts = AlertFeed(settings)
        self.pulse = Pulse(settings)
        self.backlog = Backlog(settings, self.metrics)
        self.link = Link(settings, self.metrics, self._restart_feeds)

    def _restart_feeds(self) -> None:
        self.scores.restart()
        self.alerts.restart()
        self.pulse.restart()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the link and the feeds alive."""
        loop = asyncio.get_running_loop()
        self.metrics.tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        parts = (self.link, self.scores, self.alerts, self.pulse, self.backlog)
        tasks = [asyncio.create_task(part.run()) for part in parts]
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
