"""What the demo shows: alerts as readable lines, and the counts now and then."""

import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import click

from fraudlib.demo.tally import Tally
from fraudlib.reasons import in_words

SECONDS_BETWEEN_ALERTS: Final = 0.5  # a person reads about two lines a second
SECONDS_BETWEEN_COUNTS: Final = 10.0


def _minutes(trip: Mapping[str, Any]) -> float | None:
    if isinstance(given := trip.get("duration_minutes"), int | float):
        return float(given)
    try:
        ends = [datetime.fromisoformat(trip[name]) for name in ("pickup_datetime", "dropoff_datetime")]
    except (KeyError, TypeError, ValueError):
        return None
    return (ends[1] - ends[0]).total_seconds() / 60


def _shown(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)


def _above(score: float, threshold: float) -> str:
    """Both with two decimals, or as many more as it takes to tell them apart."""
    texts = ((f"{score:.{digits}f}", f"{threshold:.{digits}f}") for digits in range(2, 17))
    return next((f"{above} > {below}" for above, below in texts if above != below), f"{score} > {threshold}")


def alert_line(alert: Mapping[str, Any], kind: str | None) -> str:
    """Time, amount, miles, minutes, zones, score, reasons in words and what was planted.

    Parameters
    ----------
    alert : mapping
        Message of the topic `alerts`.
    kind : str or None
        Kind of the planted fraud; None for a trip that was sent as honest.
    """
    trip = alert.get("transaction", {})
    amount = trip.get("total_amount", trip.get("fare_amount"))
    zones = f"{trip.get('pickup_location_id', '?')}>{trip.get('dropoff_location_id', '?')}"
    facts = (
        f"{str(trip.get('pickup_datetime', ''))[5:16].replace('T', ' '):<11} "
        f"{_shown(amount, ',.2f'):>8} USD {_shown(trip.get('trip_distance'), '.1f'):>5} mi "
        f"{_shown(_minutes(trip), '.0f'):>4} min  zones {zones:<7}"
    )
    score = click.style(f"score {_above(alert['anomaly_score'], alert['threshold'])}", fg="red")
    words = "; ".join(map(in_words, alert["reasons"]))
    truth = click.style(f"planted: {kind}", fg="green") if kind else click.style("not planted", fg="yellow")
    return f"{facts}  {score}  {words}  [{truth}]"


class Screen:
    """Prints alerts at a pace that a person can read, and the counts now and then."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._next_alert = 0.0
        self._unshown = 0
        self._next_counts = time.monotonic() + SECONDS_BETWEEN_COUNTS

    def alert(self, message: Mapping[str, Any]) -> None:
        """Show one alert, or count it as not shown."""
        now = time.monotonic()
        if now < self._next_alert:
            self._unshown += 1
            return
        self._next_alert = now + SECONDS_BETWEEN_ALERTS
        kind = self._tally.kinds.get(message["transaction_id"])
        click.echo(alert_line(message, kind), color=self._colour)

    def counts(self) -> None:
        """Show the counts when it is time."""
        if time.monotonic() < self._next_counts:
            return
        self._next_counts += SECONDS_BETWEEN_COUNTS
        t = self._tally
        p50, p99 = t.latency_ms(0.5), t.latency_ms(0.99)
        latency = f", POST to score p50 {p50:.1f} ms, p99 {p99:.1f} ms" if p50 is not None else ""
        alerts = f"{t.alerts:,} alerts ({self._unshown:,} not shown)"
        text = f"-- {t.accepted:,} accepted, {t.scored:,} scored, {alerts}{latency}"
        click.echo(click.style(text, dim=True), color=self._colour)
