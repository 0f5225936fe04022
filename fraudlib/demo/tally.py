"""What became of the trips that the demo sent: counts, latency from POST to score, planted fraud found and missed."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

KEEP: Final = 100_000  # latest latencies kept, so that a demo that runs for days stays small


@dataclass
class _Trip:
    sent_at: float
    kind: str | None
    accepted: bool = False


@dataclass
class Tally:
    """Counts of one demo. The sending thread and the reading loop both write to it.

    Parameters
    ----------
    prefix : str
        Start of every transaction_id of this demo; scores of others' trips are left out.
    """

    prefix: str
    sent: int = 0
    accepted: int = 0
    scored: int = 0
    alerts: int = 0
    duplicates: int = 0
    dead: int = 0
    planted: int = 0
    caught: int = 0
    false_positives: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, _Trip] = field(default_factory=dict)
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=KEEP))
    _lock: Lock = field(default_factory=Lock)

    def sending(self, trips: Iterable[tuple[str, str | None]], now: float) -> None:
        """Note trips (id, kind of the planted fraud or None) right before they are sent; `now` in seconds."""
        with self._lock:
            for trip_id, kind in trips:
                self.sent += 1
                self._waiting[trip_id] = _Trip(now, kind)
                if kind is not None:
                    self.planted += 1
                    self.kinds[trip_id] = kind
            while len(self.kinds) > KEEP:
                del self.kinds[next(iter(self.kinds))]

    def answered(self, accepted: Iterable[str], refused: Iterable[str]) -> None:
        """Note which trips the API took; a score may have come before."""
        with self._lock:
            for trip_id in accepted:
                self.accepted += 1
                if trip_id in self._waiting:
                    self._waiting[trip_id].accepted = True
            for trip_id in refused:
                self._waiting.pop(trip_id, None)

    def score(self, message: Mapping[str, Any], now: float) -> None:
        """Note a score that passed the reader's filter."""
        trip_id = message["transaction_id"]
        if not trip_id.startswith(self.prefix):
            return
        with self._lock:
            trip = self._waiting.pop(trip_id, None)
            if trip is None:
                self.duplicates += 1
                return
            self.scored += 1
            self._latencies.append(now - trip.sent_at)
            if message["is_flagged"]:
                self.caught += trip.kind is not None
                self.false_positives += trip.kind is None

    def dead_letter(self, trip_id: str) -> None:
        """Note a trip that could not be scored and stands on the dead-letter topic."""
        if trip_id.startswith(self.prefix):
            with self._lock:
                self.dead += self._waiting.pop(trip_id, None) is not None

    def alert(self, message: Mapping[str, Any]) -> None:
        """Note an alert that passed the reader's filter."""
        self.alerts += message["transaction_id"].startswith(self.prefix)

    @property
    def lost(self) -> int:
        """Accepted trips that have neither a score nor a dead letter, so far."""
        with self._lock:
            return sum(trip.accepted for trip in self._waiting.values())

    def latency_ms(self, quantile: float) -> float | None:
        """Quantile (0 to 1) of the latest latencies from POST to score in ms, None before the first score."""
        with self._lock:
            ordered = sorted(self._latencies)
        return round(1000 * ordered[min(int(quantile * len(ordered)), len(ordered) - 1)], 2) if ordered else None

    def as_json(self) -> dict[str, Any]:
        """The contract's closing line."""
        return {
            "sent": self.sent,
            "accepted": self.accepted,
            "scored": self.scored,
            "alerts": self.alerts,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "p50_ms": self.latency_ms(0.5),
            "p99_ms": self.latency_ms(0.99),
        }

    def __str__(self) -> str:
        share = f" ({self.caught / self.planted:.0%})" if self.planted else ""
        honest = self.scored - self.planted
        false_share = f" ({self.false_positives / honest:.2%} of honest trips)" if honest > 0 else ""
        p50, p99 = self.latency_ms(0.5), self.latency_ms(0.99)
        lines = [
            "Summary (simulated trips, planted fraud)",
            f"  sent {self.sent:,}   accepted {self.accepted:,}   scored {self.scored:,}   alerts {self.alerts:,}",
            f"  planted {self.planted:,}   caught {self.caught:,}{share}   "
            f"false positives {self.false_positives:,}{false_share}",
            f"  lost {self.lost:,}   duplicates {self.duplicates:,}"
            + (f"   dead letters {self.dead:,}" * bool(self.dead)),
        ]
        if p50 is not None:
            lines.append(f"  POST to score: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        return "\n".join(lines)
