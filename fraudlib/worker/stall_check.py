"""Watches from inside the event loop whether a worker gets on, and gives up where only a new start can help."""

import asyncio
import logging
import time
from typing import Any, Final

from fraudlib.errors import ServiceError
from fraudlib.telemetry import WorkerMetrics
from fraudlib.wire.kafka import Publisher
from fraudlib.worker.quarantine import TRIAL_SECONDS, Quarantine
from fraudlib.worker.stages import Stages

log = logging.getLogger(__name__)

TELL_SECONDS: Final = 15.0


class StuckError(ServiceError):
    """Messages wait, the broker answers, and the consumer gets nothing."""


class HungError(ServiceError):
    """The model does not come back from a batch."""


class StallCheck:
    """Looks once a second.

    Parameters
    ----------
    seconds : without progress after which it gives up.
    stages, consumer, publisher, quarantine, metrics : of the worker.
    """

    def __init__(
        self,
        seconds: float,
        stages: Stages,
        consumer: Any,
        publisher: Publisher,
        quarantine: Quarantine,
        metrics: WorkerMetrics,
    ) -> None:
        self._seconds, self._stages, self._consumer = seconds, stages, consumer
        self._publisher, self._quarantine, self._metrics = publisher, quarantine, metrics
        self._taking_on_since: float | None = None
        self._without_since, self._told_at = time.monotonic(), 0.0

    async def run(self) -> None:
        """Show the lag and watch, for ever.

        Raises
        ------
        StuckError, HungError
        """
        while True:
            await asyncio.sleep(1)
            lags = self._stages.lags()
            self._metrics.lag.clear()
            for tp, lag in lags.items():
                self._metrics.lag.labels(str(tp.partition)).set(lag)
            self._tell_of_waiting()
            self._check_scoring()
            await self._check_taking_on()
            await self._check_progress(lags)

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        if self._stages.is_assigned:
            self._without_since, self._told_at = now, 0.0
        elif now - max(self._without_since, self._told_at) >= TELL_SECONDS:
            self._told_at = now
            log.info(
                "no partitions yet: the group lets a worker in when another's session ends, and there is none to spare "
                "where it has as many workers as the topic has partitions",
                extra={"seconds": round(now - self._without_since)},
            )

    def _check_scoring(self) -> None:
        limit = self._seconds + TRIAL_SECONDS * self._quarantine.is_trying
        if (since := self._stages.scoring_since) and time.monotonic() - since > limit:
            raise HungError(f"the model has been at one batch for over {limit:.0f} s")

    async def _check_taking_on(self) -> None:
        if not self._consumer.assignment() or self._stages.is_assigned:
            self._taking_on_since = None
            return
        self._taking_on_since = self._taking_on_since or time.monotonic()
        if time.monotonic() - self._taking_on_since > self._seconds and await self._publisher.answers():
            raise StuckError(f"partitions are assigned and could not be taken on for {self._seconds:.0f} s")

    async def _check_progress(self, lags: dict[Any, int]) -> None:
        stages = self._stages
        quiet = time.monotonic() - stages.last_progress
        if quiet < self._seconds or not stages.waits_for_messages or not stages.is_assigned:
            return
        polled = [self._consumer.last_poll_timestamp(tp) for tp in self._consumer.assignment()]
        is_silent = any(at is None or time.time() - at / 1000 > self._seconds for at in polled)
        if (any(lags.values()) or is_silent) and await self._publisher.answers():
            raise StuckError(f"{sum(lags.values())} messages wait and none came for {quiet:.0f} s")
