"""More than the API can take: how much of its capacity is still served, and how soon the rest is told no.

`python -m bench.overload` prints one JSON object. Capacity is measured with as many requests under way as are admitted,
so that nothing is refused; then a multiple of it is offered, open loop, and now and then a part. Rounds are of seconds:
a shared machine's speed changes, and in the first tenths of a round the batches to the broker still grow. The load
would be other machines': where there are two cores or more, the API has one to itself, broker and load the others.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from bench import openloop
from bench.latency import records
from fraudlib.demo.stack import Stack, free_port
from fraudlib.settings import Settings

TRIP: Final = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
TAKEN, REFUSED = 202, 503
ITEMS: Final = 500  # of one POST /transactions
CALM_EVERY: Final = 4  # rounds
ENDLESS: Final = 1e6  # requests a second: the next one is due as soon as a connection is free


@dataclass(frozen=True)
class Phase:
    """What became of a load.

    Attributes
    ----------
    sent_s, took_s : of each request, (n,), s: when it was sent, and from then until its answer; NaN without one.
    status : of each answer, (n,), 0 without one.
    seconds : from the first request that was sent to the last one.
    """

    sent_s: np.ndarray
    took_s: np.ndarray
    status: np.ndarray
    seconds: float

    @property
    def served_a_second(self) -> float:
        """Requests that were taken while more were being sent, per second: the last refusals are waited for, idle."""
        in_time = self.sent_s + self.took_s <= self.seconds
        return float((in_time & (self.status == TAKEN)).sum() / self.seconds)

    def share(self, status: int) -> float:
        """Share of the requests that were answered so."""
        return float((self.status == status).mean())

    def p99_ms(self, status: int) -> float:
        """99th percentile of the time to an answer of that status, from when it was sent; NaN without any."""
        took = self.took_s[self.status == status]
        return float(1000 * np.quantile(took, 0.99)) if len(took) else math.nan


@dataclass
class Door:
    """One way into the API.

    Attributes
    ----------
    port : of the API. admitted : requests at once that it takes. items : transactions in a request.
    """

    port: int
    admitted: int
    items: int = 1

    def offer(self, rate: float, seconds: float, connections: int) -> Phase:
        """Offer requests at a rate for so long, over so many connections; single transactions."""
        request = openloop.post("/transaction", TRIP, "x")
        count = max(1, int(min(rate, 20_000) * seconds))
        load = openloop.run("127.0.0.1", self.port, [request] * count, rate, connections, seconds)
        count = load.count
        return _phase(load.sent[:count], load.answered[:count], load.outcomes[:count])


@dataclass
class BulkDoor(Door):
    """`POST /transactions`, with bodies of full records.

    Attributes
    ----------
    body : NDJSON, sent again and again.
    """

    body: bytes = field(default=b"", repr=False)

    def offer(self, rate: float, seconds: float, connections: int) -> Phase:
        """Offer bodies at a rate for so long, a thread for each connection."""
        start = time.monotonic() + 0.1
        found: list[tuple[float, float, int]] = []
        turn = iter(range(sys.maxsize))

        def post() -> None:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
            while (due := start + next(turn) / rate) < start + seconds and time.monotonic() < start + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                sent = time.monotonic()
                connection.request("POST", "/transactions", self.body, {"Content-Type": "application/x-ndjson"})
                answer = connection.getresponse()
                answer.read()
                found.append((sent, time.monotonic(), answer.status))
            connection.close()

        threads = [threading.Thread(target=post) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _phase(*map(list, zip(*found, strict=True)))


def _phase(sent: Sequence[float], answered: Sequence[float], status: Sequence[int]) -> Phase:
    at, until = np.array(sent), np.array(answered)
    return Phase(at - at.min(), until - at, np.array(status), float(at.max() - at.min()))


def recovery_s(calm: Phase) -> float:
    """Seconds after the overload's end until everything is taken again; infinite where it never is."""
    refused = calm.sent_s[calm.status != TAKEN]
    after = float(refused.max()) if len(refused) else 0.0
    return after if after < float(calm.sent_s.max()) else math.inf


def share_of(served: np.ndarray, capacity: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """What is served of the capacity over all rounds together, and its 95 % interval by resampling rounds.

    Parameters
    ----------
    served, capacity : transactions a second in each round, (n,). draws : resamplings.
    """
    rows = np.random.default_rng(0).integers(0, len(served), (draws, len(served)))
    drawn = served[rows].sum(axis=1) / capacity[rows].sum(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(served.sum() / capacity.sum()), float(low), float(high)


def _overload(door: Door, seconds: float, times: float, rounds: int) -> dict[str, Any]:
    """Capacity, overload and recovery of one way in; of times and rates the median round."""
    door.offer(ENDLESS, 1, door.admitted)
    capacities = [door.offer(ENDLESS, seconds, door.admitted).served_a_second]
    overloads, calms = [], []
    for number in tqdm(range(rounds), f"overload, {door.items} at once", unit="round", disable=None):
        overloads.append(door.offer(times * capacities[-1], seconds, 5 * door.admitted))
        if number % CALM_EVERY == 0:
            calms.append(door.offer(capacities[-1] / 4, 1, door.admitted))
        capacities.append(door.offer(ENDLESS, seconds, door.admitted).served_a_second)
    # Measured on both sides, as the machine's speed changes.
    around = np.array([sum(pair) / 2 for pair in pairwise(capacities)])
    share, low, high = share_of(np.array([o.served_a_second for o in overloads]), around)
    sent = [len(o.status) / o.seconds / capacity for o, capacity in zip(overloads, around, strict=True)]
    return {
        "admitted": door.admitted,
        "connections": 5 * door.admitted,
        "rounds": rounds,
        "capacity_a_second": round(statistics.median(around) * door.items),
        "due_times": times,
        "sent_times": round(statistics.median(sent), 2),
        "served_of_capacity": round(share, 3),
        "served_interval": [round(low, 3), round(high, 3)],
        "refused_share": round(statistics.median(o.share(REFUSED) for o in overloads), 3),
        "other_answers": sum(int(((o.status != TAKEN) & (o.status != REFUSED)).sum()) for o in overloads),
        "refused_p99_ms": round(statistics.median(o.p99_ms(REFUSED) for o in overloads), 1),
        "served_p99_ms": round(statistics.median(o.p99_ms(TAKEN) for o in overloads), 1),
        "recovery_s": round(max(map(recovery_s, calms)), 2),
    }


def _share_cores(stack: Stack) -> bool:
    """Give the API the first core and all else the others; False where that cannot be."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return False
    os.sched_setaffinity(0, others)
    for name, child in stack.running.items():
        for task in Path(f"/proc/{child.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {first} if name == "api" else set(others))
    return True


def measure(seconds: float = 4.0, times: float = 5.0, in_flight: int = 16, rounds: int = 16) -> dict[str, Any]:
    """Overload of single transactions and of bulk bodies, on a stack of its own without a worker.

    Parameters
    ----------
    seconds : of each phase. times : the overload as a multiple of the capacity.
    in_flight : single requests that are admitted at once. rounds : repetitions.
    """
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        max_in_flight=in_flight,
        max_lag=2**60,
    )
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    # Their ids come again with every body: nothing at the door looks at that.
    body = b"\n".join(records(ITEMS, "overload-")[1])
    doors = {
        "single": Door(settings.api_port, in_flight),
        "bulk": BulkDoor(settings.api_port, settings.max_bulk_in_flight, ITEMS, body),
    }
    with tempfile.TemporaryDirectory() as folder, Stack(settings, Path(folder)) as stack:
        for _ in stack.start("broker", "api"):
            pass
        apart = _share_cores(stack)
        try:
            found = {name: _overload(door, seconds, times, rounds) for name, door in doors.items()}
        finally:
            if cores:
                os.sched_setaffinity(0, cores)
    return {"items_of_a_body": ITEMS, "api_has_its_own_core": apart, "doors": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Start broker and API, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase")
    parser.add_argument("--times", type=float, default=5.0, help="the overload as a multiple of the capacity")
    parser.add_argument("--in-flight", type=int, default=16, help="single requests admitted at once")
    parser.add_argument("--rounds", type=int, default=16, help="how often everything is measured in turn")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.seconds, options.times, options.in_flight, options.rounds)))


if __name__ == "__main__":
    main()
