"""How long a worker tries to publish to a broker that answers and does not take what it is given."""

import time
from typing import Final

from fraudlib.errors import ServiceError
from fraudlib.wire.kafka import RefusedError

REFUSALS: Final = 3


class UnpublishableError(ServiceError):
    """The broker answers, and does not take what has to be written before the worker may go on."""


class PublishTimeout:
    """Ends after some refusals in a row, or some time without a success; skipping what is not taken is no choice.

    Parameters
    ----------
    seconds : without a success after which it ends.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._refusals = 0
        self._since: float | None = None

    def succeeded(self) -> None:
        """Something was published."""
        self._refusals, self._since = 0, None

    def failed(self, cause: Exception) -> None:
        """Something was not, and the broker answered afterwards: one that is gone is waited for without an end.

        Raises
        ------
        UnpublishableError
        """
        now = time.monotonic()
        self._refusals += isinstance(cause, RefusedError)
        self._since = self._since or now
        if self._refusals >= REFUSALS or now - self._since > self._seconds:
            raise UnpublishableError(
                f"expected the broker to take scores, alerts and dead letters, found: {cause}; "
                "nothing is skipped, so mend the topic and start the worker again"
            ) from cause
