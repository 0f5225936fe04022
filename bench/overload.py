"""Five times what the API can take: how much of its capacity is still served, and how soon the rest is told no.

`python -m bench.overload` prints one JSON object. Broker, API and the load share the machine, so that the ratios say
more than the rates: capacity is measured with as many requests under way as are admitted, the overload with more.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import openloop
from fraudlib.demo.stack import Stack, free_port
from fraudlib.settings import Settings

TRIP: Final = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
TAKEN, REFUSED = 202, 503
LONGEST_RECOVERY: Final = 5.0


@dataclass(frozen=True)
class Phase:
    """What became of a load: when each request was sent and how long its answer took (seconds), and the statuses."""

    sent_s: np.ndarray
    took_s: np.ndarray
    status: np.ndarray
    seconds: float

    @property
    def served_a_second(self) -> float:
        """Transactions that the broker has, per second."""
        return float((self.status == TAKEN).sum() / self.seconds)

    def share(self, status: int) -> float:
        """Share of the requests that were answered so."""
        return float((self.status == status).mean())

    def p99_ms(self, status: int) -> float:
        """99th percentile of the time to an answer of that status, from when it was sent; NaN without any."""
        took = self.took_s[self.status == status]
        return float(1000 * np.quantile(took, 0.99)) if len(took) else math.nan


def offer(settings: Settings, rate: float, seconds: float, connections: int) -> Phase:
    """Offer a rate for so long, over so many connections."""
    request = openloop.post("/transaction", TRIP, "x")
    started = time.monotonic()
    load = openloop.run("127.0.0.1", settings.api_port, [request] * max(1, int(rate * seconds)), rate, connections)
    sent, answered = np.array(load.sent), np.array(load.answered)
    lasted = float(np.nanmax(answered) - sent[0])
    return Phase(sent - started, answered - sent, np.array(load.outcomes), lasted)


def recovery_s(calm: Phase) -> float:
    """Seconds after the overload's end until everything is taken again; infinite where it never is."""
    refused = calm.sent_s[calm.status != TAKEN]
    after = float(refused.max()) if len(refused) else 0.0
    return after if after < float(calm.sent_s.max()) else math.inf


def measure(settings: Settings, seconds: float, times: float) -> dict[str, Any]:
    """Capacity, overload and recovery of a running API.

    Parameters
    ----------
    seconds : of each phase. times : the overload as a multiple of the capacity.
    """
    admitted = settings.max_in_flight
    offer(settings, 200, 1, admitted)
    # Offered without end, over as many connections as are admitted: nothing is refused, and nothing waits elsewhere.
    capacity = offer(settings, 20_000, seconds / 4, admitted).served_a_second
    overload = offer(settings, times * capacity, seconds, 4 * admitted)
    calm = offer(settings, capacity / 4, LONGEST_RECOVERY, admitted)
    return {
        "capacity_a_second": round(capacity),
        "offered_times": round(len(overload.status) / overload.seconds / capacity, 2),
        "served_of_capacity": round(overload.served_a_second / capacity, 3),
        "refused_share": round(overload.share(REFUSED), 3),
        "other_share": round(1 - overload.share(REFUSED) - overload.share(TAKEN), 4),
        "refused_p99_ms": round(overload.p99_ms(REFUSED), 1),
        "served_p99_ms": round(overload.p99_ms(TAKEN), 1),
        "recovery_s": round(recovery_s(calm), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Start broker and API, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the overload")
    parser.add_argument("--times", type=float, default=5.0, help="the overload as a multiple of the capacity")
    parser.add_argument("--in-flight", type=int, default=16, help="requests admitted at once")
    options = parser.parse_args(arguments)
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        max_in_flight=options.in_flight,
    )
    with tempfile.TemporaryDirectory() as folder, Stack(settings, Path(folder)) as stack:
        for _ in stack.start("broker", "api"):
            pass
        print(json.dumps(measure(settings, options.seconds, options.times)))


if __name__ == "__main__":
    main()
