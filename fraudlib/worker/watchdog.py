"""A thread beside the event loop that ends the process when the loop does not turn, or does not end when told to.

Nothing in the loop could do that: it is the one that hangs, in a library, a system call or a thread that it waits for.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

EXIT_NOT_DRAINED: Final = 1
EXIT_BLOCKED: Final = 72
BEAT_SECONDS: Final = 0.25
STOP_SECONDS: Final = 14.0


class Watchdog(threading.Thread):
    """Start it, keep `beat` running in the loop, and close it when the loop has ended.

    Parameters
    ----------
    seconds : without a turn of the loop, after which the process ends with code 72.
    stop_seconds : after `stop_asked`, after which it ends with code 1.
    """

    def __init__(self, seconds: float, stop_seconds: float = STOP_SECONDS) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._seconds, self._stop_seconds = seconds, stop_seconds
        self._last_beat: float | None = None
        self._deadline: float | None = None
        self._closed = threading.Event()

    async def beat(self, observe: Callable[[float], None]) -> None:
        """Say for ever that the loop turns."""
        while True:
            self._last_beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
            observe(max(0.0, time.monotonic() - self._last_beat - BEAT_SECONDS))

    def stop_asked(self) -> None:
        """The process has to be gone soon."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._stop_seconds

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def run(self) -> None:
        """Watch until closed."""
        woke = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            slept, woke = woke, time.monotonic()
            now = woke
            if now - slept > 4 * BEAT_SECONDS and self._last_beat is not None:
                # This thread stood still as well: the process was paused, and the loop gets its time anew.
                self._last_beat = now
            if self._deadline is not None and now > self._deadline:
                self._end("worker did not stop in time", EXIT_NOT_DRAINED)
            if self._last_beat is not None and now - self._last_beat > self._seconds + BEAT_SECONDS:
                self._end("event loop is blocked", EXIT_BLOCKED)

    def _end(self, text: str, code: int) -> None:
        log.critical(text, extra={"exit_code": code})
        os._exit(code)
