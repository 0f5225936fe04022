"""A live stack as a notebook meets it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fraudlib import paths
from fraudlib.demo import session
from fraudlib.errors import ServiceError

pytestmark = pytest.mark.slow
TRIP = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}


@pytest.fixture(scope="module")
def live() -> Iterator[session.Session]:
    opened = session.Session.open("artifacts", join=False)
    yield opened
    opened.close()


def test_a_trip_comes_back_scored(live: session.Session) -> None:
    """The answer holds the score and how long it took; a trip that is none is refused in the API's own words."""
    answer = live.send(TRIP)
    assert answer["anomaly_score"] < answer["threshold"]
    assert answer["took_ms"] > 0
    with pytest.raises(ServiceError, match="fare_amount"):
        live.send({"trip_distance": 2.5, "duration_minutes": 15})


def test_a_stream_is_watched_to_its_end(live: session.Session) -> None:
    """A stream of 700 trips ends by itself with each of them scored, in order, and its alerts say what was planted."""
    with live.stream(paths.root() / "data/sample", 300, 0.05, 7, 700) as stream:
        frames = list(stream.every(0.5, 60.0))
    assert len(frames[0]) < len(frames[-1]) == 700
    assert list(frames[-1].trip) == list(range(700))
    assert stream.scored == stream.accepted == stream.sent == 700
    assert stream.lost == 0
    assert stream.scores().is_planted.sum() == stream.planted > 0
    assert len(stream.latest_alerts(200)) == stream.alerts == stream.caught + stream.false_positives
    assert set(stream.latest_alerts(200).planted) & set(stream.kinds.values())


def test_a_stream_without_an_end_is_left_after_its_time(live: session.Session) -> None:
    """Where no number of trips is asked for, the time ends it, and nothing that was accepted is lost."""
    with live.stream(paths.root() / "data/sample", 300, 0.05, 7) as stream:
        frames = list(stream.every(0.2, 1.0))
    assert len(frames) >= 5
    assert frames[0].dtypes.equals(stream.scores().dtypes)
    assert stream.lost == 0


def test_a_running_stack_is_joined_and_left_running(live: session.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack at the settings' addresses is used as it is, and closing the session does not stop it."""
    for name in ("api_port", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"FRAUDLIB_{name.upper()}", str(getattr(live.settings, name)))
    joined = session.Session.open("artifacts")
    assert not joined.started_here
    joined.close()
    assert live.send(TRIP)["transaction_id"]


def test_a_stack_that_cannot_score_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bundle there is no score, and the message shows the end of the worker's log."""
    monkeypatch.setattr("fraudlib.demo.stack.START_SECONDS", {"broker": 20.0, "api": 30.0, "worker": 4.0})
    with pytest.raises(ServiceError, match=r"worker (was not ready|ended)"):
        session.Session.open(tmp_path, join=False)
