"""More than the API can take: the rest is refused for certain and at once, and nothing of it lasts."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from bench.overload import BulkDoor, Door, Phase, recovery_s, share_of
from fraudlib.demo.stack import Stack, free_port
from fraudlib.settings import Settings


def test_what_is_too_much_is_refused_and_then_all_is_well(tmp_path: Path) -> None:
    """With one request admitted and many under way, each is taken or refused; later all are taken."""
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        max_in_flight=1,
        max_bulk_in_flight=1,
    )
    bulk = b"\n".join([b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'] * 5000)
    with Stack(settings, tmp_path) as stack:
        for _ in stack.start("broker", "api"):
            pass
        for door in (Door(settings.api_port, 1), BulkDoor(settings.api_port, 1, 5000, bulk)):
            crowded = door.offer(5000, 0.5, 16)
            calm = door.offer(20, 0.5, 1)
            assert set(crowded.status.tolist()) == {202, 503}
            assert crowded.share(503) > 0.05
            assert set(calm.status.tolist()) == {202}


def test_a_recovery_that_does_not_come_is_infinite() -> None:
    """The measure itself: the last refusal counts, and one at the very end is no recovery."""
    times, took = np.array([0.0, 1.0, 2.0]), np.full(3, 0.01)
    phase = Phase(times, took, np.array([503, 503, 202]), 2.0)
    assert recovery_s(phase) == 1.0
    assert recovery_s(dataclasses.replace(phase, status=np.array([202, 202, 503]))) == math.inf
    assert recovery_s(dataclasses.replace(phase, status=np.array([202, 202, 202]))) == 0.0
    assert phase.p99_ms(503) == pytest.approx(10.0)


def test_the_share_served_is_that_of_all_rounds_with_an_interval() -> None:
    """The measure itself: a slow round weighs as much as it lasted, an answer after the last request does not count."""
    share, low, high = share_of(np.array([100.0, 45.0, 90.0, 55.0]), np.array([100.0, 50.0, 100.0, 50.0]))
    assert share == pytest.approx(290 / 300)
    assert low < share < high
    assert share_of(np.full(9, 95.0), np.full(9, 100.0)) == pytest.approx((0.95, 0.95, 0.95))
    phase = Phase(np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.5, 0.5]), np.array([202, 202, 202]), 2.0)
    assert phase.served_a_second == 1.0
