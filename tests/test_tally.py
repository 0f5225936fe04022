"""The demo's counts."""

from typing import Any

from fraudlib.demo.tally import Tally


def score(trip_id: str, is_flagged: bool = False) -> dict[str, Any]:
    """A score message, as far as the tally reads it."""
    return {"transaction_id": trip_id, "is_flagged": is_flagged}


def test_every_trip_is_scored_lost_or_not_accepted() -> None:
    """Lost is what was accepted and got neither score nor dead letter; what was refused is not lost."""
    tally = Tally("t-")
    tally.sending([(f"t-{i}", None) for i in range(6)], 0.0)
    tally.score(score("t-0"), 0.004)
    tally.answered(["t-0", "t-1", "t-2", "t-3"], ["t-4"])
    tally.score(score("t-1"), 0.008)
    tally.dead_letter("t-2")
    line = tally.as_json()
    assert (line["sent"], line["accepted"], line["scored"], line["lost"], line["duplicates"]) == (6, 4, 2, 1, 0)
    assert (line["p50_ms"], line["p99_ms"]) == (8.0, 8.0)
    assert list(line) == ["sent", "accepted", "scored", "alerts", "lost", "duplicates", "p50_ms", "p99_ms"]


def test_a_second_score_is_a_duplicate_and_others_trips_are_left_out() -> None:
    """Only this demo's trips count, each once."""
    tally = Tally("t-")
    tally.sending([("t-0", None)], 0.0)
    for trip_id in ("t-0", "t-0", "somebody-else"):
        tally.score(score(trip_id), 0.001)
    tally.alert({"transaction_id": "t-0"})
    tally.alert({"transaction_id": "somebody-else"})
    assert (tally.scored, tally.duplicates, tally.alerts) == (1, 1, 1)


def test_planted_fraud_is_caught_or_missed_and_honest_trips_falsely_flagged() -> None:
    """Flags are held against what was planted."""
    tally = Tally("t-")
    tally.sending([("t-0", "meter_zapper"), ("t-1", "ghost_card"), ("t-2", None), ("t-3", None)], 0.0)
    for trip_id, flag in (("t-0", True), ("t-1", False), ("t-2", True), ("t-3", False)):
        tally.score(score(trip_id, flag), 0.001)
    assert (tally.planted, tally.caught, tally.false_positives) == (2, 1, 1)
    assert "planted 2   caught 1 (50%)   false positives 1 (50.00% of honest trips)" in str(tally)
    assert "simulated" in str(tally)


def test_nothing_sent_is_a_summary_too() -> None:
    """A demo that was stopped at once has no latency, and says so with null."""
    assert Tally("t-").as_json()["p99_ms"] is None
    assert "p99" not in str(Tally("t-"))
