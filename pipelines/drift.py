"""Retraining before its time: the workers' drift, read where it is published, and how long it has been too high."""

import json
import logging
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from fraudlib.errors import ParameterError, ServiceError

METRIC: Final = "fraudlib_worker_drift_index"
FEATURE: Final = "anomaly_score"  # the index over the scores: what the model makes of everything that moved
TIMEOUT_SECONDS: Final = 5.0
log = logging.getLogger(__name__)


def addresses(text: str) -> list[str]:
    """Addresses of a comma-separated list; ParameterError where one is no http address."""
    found = [part.strip().rstrip("/") for part in text.split(",") if part.strip()]
    for url in found:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ParameterError(
                f"FRAUDLIB_DRIFT_URLS: expected addresses like http://127.0.0.1:9108/metrics, found {url!r}"
            )
    return found


def read(urls: Sequence[str]) -> float:
    """Highest drift of the scores that the addresses tell; NaN where none has measured any yet.

    Parameters
    ----------
    urls : a worker's where it ends in /metrics, else a Prometheus's.

    Raises
    ------
    ServiceError
        If none of them answers as expected.
    """
    values, problems = [], []
    for url in urls:
        try:
            values.append(_worker(url) if url.endswith("/metrics") else _prometheus(url))
        except (OSError, ValueError, KeyError, TypeError) as err:
            problems.append(f"{url}: {err}")
    if problems and not values:
        raise ServiceError(f"expected the workers' drift, found no answer ({'; '.join(problems)}); check the addresses")
    return max((value for value in values if not math.isnan(value)), default=float("nan"))


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 (checked by addresses)
        return str(response.read().decode("utf-8"))


def _worker(url: str) -> float:
    samples = (s for family in text_string_to_metric_families(_get(url)) for s in family.samples)
    values = (s.value for s in samples if s.name == METRIC and s.labels.get("feature") == FEATURE)
    return max(values, default=float("nan"))


def _prometheus(url: str) -> float:
    query = urllib.parse.urlencode({"query": f'max({METRIC}{{feature="{FEATURE}"}})'})
    result = json.loads(_get(f"{url}/api/v1/query?{query}"))["data"]["result"]
    return float(result[0]["value"][1]) if result else float("nan")


class Hold:
    """Whether a value has stayed above a bound for long enough.

    Parameters
    ----------
    bound : of the value. seconds : how long it has to stay above. pause_seconds : least time between two yeses.
    clock : seconds, monotonic.
    """

    def __init__(
        self, bound: float, seconds: float, pause_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bound, self._seconds, self._pause, self._clock = bound, seconds, pause_seconds, clock
        self._since: float | None = None
        self._last = -math.inf

    def add(self, value: float) -> bool:
        """Take the value of now; NaN, which is nothing known, counts as below."""
        now = self._clock()
        if not value > self._bound:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds and now - self._last >= self._pause

    def answered(self) -> None:
        """Something was done about it: the time above starts anew, and so does the pause."""
        self._since, self._last = None, self._clock()
