"""The demo's lines."""

from typing import Any

import click
import pytest

from fraudlib.demo.screen import alert_line


def alert(score: float, threshold: float = 2.1884) -> dict[str, Any]:
    """A message of the topic `alerts`, as far as the line shows it."""
    trip = {"trip_distance": 2.5, "total_amount": 1234.5, "duration_minutes": 15.0, "pickup_location_id": 41}
    reason = {"field": "fare_amount", "observed": 8.6, "expected": 5.68, "surprise": 2.0}
    return {"anomaly_score": score, "threshold": threshold, "reasons": [reason], "transaction": trip}


def test_a_line_tells_what_was_seen_and_what_was_expected() -> None:
    """Amount, miles, minutes, zones, score, the reason in words, and what was planted; a missing part is a ?."""
    line = click.unstyle(alert_line(alert(3.4567), "ghost_card"))
    for part in (
        "1,234.50 USD",
        "2.5 mi",
        "15 min",
        "zones 41>?",
        "score 3.46 > 2.19",
        "fare_amount 8.60, expected 5.68",
    ):
        assert part in line
    assert line.endswith("[planted: ghost_card]")
    assert click.unstyle(alert_line(alert(3.0), None)).endswith("[not planted]")


@pytest.mark.parametrize(
    ("score", "shown"), [(2.1912, "2.191 > 2.188"), (2.18841, "2.18841 > 2.18840"), (2.2, "2.20 > 2.19")]
)
def test_a_score_just_above_the_threshold_is_told_apart(score: float, shown: str) -> None:
    """No alert reads as if it lay on its threshold."""
    assert f"score {shown}  " in click.unstyle(alert_line(alert(score), None))
