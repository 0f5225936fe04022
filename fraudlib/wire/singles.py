"""Single messages on their way to one broker: what comes while others are under way goes together with the next.

A client has one request under way to a broker anyway, so that nobody waits longer for it. Where several go together,
the next ones wait a moment for as many: every request costs the API, the broker and the worker the same however many
messages it carries, and on a busy machine the time saved is more than the moment. Who comes alone goes at once, and so
do clients that wait for their answers, once all of them are back.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 1.0
PACE_SECONDS: Final = 0.004  # of 2 to 6 ms, that which made the median from POST to score least at 1,000 a second


class Single:
    """A message, and the future that says what became of it.

    Attributes
    ----------
    outcome : done once the broker has the message; fails with an error that says what is known.
    """

    __slots__ = ("_since", "key", "outcome", "partition", "topic", "value")

    def __init__(self, topic: str, partition: int, key: bytes, value: bytes) -> None:
        self.topic, self.partition, self.key, self.value = topic, partition, key, value
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._since = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        """Whether it has waited for longer than anyone should who has not been sent."""
        return time.monotonic() - self._since > PATIENCE_SECONDS

    def succeed(self) -> None:
        """The broker has it; nothing where nobody waits any more."""
        if not self.outcome.done():
            self.outcome.set_result(None)

    def fail(self, error: Exception, cause: BaseException | None) -> None:
        """It is not known to be there; nothing where nobody waits any more."""
        if not self.outcome.done():
            error.__cause__ = cause
            self.outcome.set_exception(error)


class Lane:
    """The way to one broker.

    Parameters
    ----------
    ship : sends messages and gives each its outcome, unless it hands some back, the first to go next; and says whether
        all went well.
    give_up : gives its outcome to a message that was not sent.
    """

    def __init__(
        self,
        ship: Callable[[Sequence[Single]], Awaitable[tuple[bool, list[Single]]]],
        give_up: Callable[[Single], None],
    ) -> None:
        self._ship, self._give_up = ship, give_up
        self._waiting: list[Single] = []
        self._last_count, self._last_at = 0, 0.0
        self._are_enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, single: Single) -> None:
        """Send it with the next."""
        self._waiting.append(single)
        if len(self._waiting) >= self._last_count:
            self._are_enough.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                under_way, self._waiting = self._waiting, []
                self._last_count, self._last_at = len(under_way), time.monotonic()
                try:
                    went_well, left = await self._ship(under_way)
                except Exception as err:
                    # A mistake of this side's own; nobody is left waiting for what will not be told.
                    log.exception("messages were not sent as they should be")
                    for single in under_way:
                        single.fail(err, err.__cause__)
                    continue
                self._waiting[:0] = left
                if not went_well:
                    self._drop_overdue()
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Wait for as many as went last time, at most PACE_SECONDS after that."""
        left = self._last_at + PACE_SECONDS - time.monotonic()
        if left <= 0 or len(self._waiting) >= self._last_count:
            return
        self._are_enough.clear()
        timer = asyncio.get_running_loop().call_later(left, self._are_enough.set)
        try:
            await self._are_enough.wait()
        finally:
            timer.cancel()

    def _drop_overdue(self) -> None:
        """Whoever has waited for a broker that fails is told, rather than made to wait for its next failure."""
        waiting, self._waiting = self._waiting, []
        for single in waiting:
            if single.is_overdue:
                self._give_up(single)
            else:
                self._waiting.append(single)
        if len(self._waiting) >= self._last_count:
            self._are_enough.set()
