"""How much each client may send: a token bucket for every one, few of which are remembered."""

import math
import time
from collections import OrderedDict
from typing import Final

REMEMBERED: Final = 10_000


class Bucket:
    """Tokens of one client; may be overdrawn by what is known only afterwards."""

    __slots__ = ("_filled", "_rate", "_tokens")

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._filled = rate, max(2 * rate, 1.0), time.monotonic()

    def take(self) -> int:
        """Take one token. Seconds after which to come again, 0 where there was one."""
        self._fill()
        if self._tokens >= 1:
            self._tokens -= 1
            return 0
        return math.ceil((1 - self._tokens) / self._rate)

    def charge(self, tokens: int) -> None:
        """Take tokens whether they are there or not."""
        self._fill()
        self._tokens -= tokens

    def _fill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._tokens + self._rate * (now - self._filled), max(2 * self._rate, 1.0))
        self._filled = now


class Rates:
    """A bucket for each client; it holds two seconds' worth, and the clients longest unseen are forgotten.

    Parameters
    ----------
    rate : tokens a second of each client.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def bucket(self, client: str) -> Bucket:
        """Bucket of a client."""
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = Bucket(self._rate)
            if len(self._buckets) > REMEMBERED:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(client)
        return bucket
