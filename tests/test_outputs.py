"""A batch in pieces comes out as the batch at once."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench import trivial
from fraudlib.worker import outputs


@dataclass
class Message:
    """The parts of a Kafka message that matter."""

    offset: int
    partition: int
    key: bytes | None
    value: bytes | None
    topic: str = "transactions"


class Broken(trivial.Scorer):
    """Fails on fares of 13 dollars, and has no finite score for those of 14."""

    def score(self, columns: Mapping[str, NDArray[Any]]) -> trivial.Scores:
        """Scores of n rows."""
        if np.any(columns["fare_amount"] == 13):
            raise ArithmeticError("13")
        scores = super().score(columns)
        return trivial.Scores(np.where(scores.anomaly_score == 14, np.nan, scores.anomaly_score), scores.is_flagged, {})


def batch() -> list[Message]:
    """Two partitions, one after the other, with poison, dear trips and trips that the model has trouble with."""
    out = []
    for i, fare in enumerate([10, 60, 13, 14, None, 70, 11, 12, 80, 13, 15]):
        trip = {"trip_distance": 2.5, "fare_amount": fare, "duration_minutes": 15}
        out.append(Message(i, int(i > 5), f"k{i}".encode(), json.dumps(trip).encode()))
    return out


def without_times(rows: dict[int, list[outputs.Row]]) -> Any:
    """Rows without the moment at which they were written, and without the headers."""
    return {p: [(key, (value or b"").split(b"scored_at")[0]) for key, value, _ in part] for p, part in rows.items()}


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
@pytest.mark.parametrize("ahead", [False, True])
def test_pieces_change_nothing(piece: int, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, alerts and dead letters are the same, each partition in the order of its offsets."""
    whole = outputs.process(batch(), Broken())
    monkeypatch.setattr(outputs, "PIECE", piece)
    found = outputs.process(batch(), Broken(), outputs.decode_ahead(batch(), nullcontext()) if ahead else None)
    assert without_times(found.scores) == without_times(whole.scores)
    assert without_times(found.alerts) == without_times(whole.alerts)
    assert {p: sorted(key for key, _, _ in rows) for p, rows in found.dead_letters.items()} == {
        0: [b"k2", b"k3", b"k4"],
        1: [b"k9"],
    }
    assert found.scored == whole.scored == 7
    for rows in found.scores.values():
        offsets = [json.loads(value or b"")["src_offset"] for _, value, _ in rows]
        assert offsets == sorted(offsets)
