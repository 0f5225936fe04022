"""What a worker writes for a batch of messages: scores, alerts and dead letters, encoded, by partition."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib.errors import ServiceError
from fraudlib.kafka import Row
from fraudlib.manifest import now
from fraudlib.records import ID_PATTERN, Decoded, decode

_is_id = re.compile(ID_PATTERN.encode().removeprefix(b"^").removesuffix(b"$")).fullmatch

# A plain trip that any working model can score; where it fails too, the model is at fault and not the record.
_PROBE: Final = {
    "trip_distance": np.array([2.5]),
    "fare_amount": np.array([12.5]),
    "duration_minutes": np.array([15.0]),
}


class Message(Protocol):
    """The parts of a Kafka message that a worker reads."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class Scores(Protocol):
    """Scores of n transactions; `reasons` has the flagged rows only."""

    @property
    def anomaly_score(self) -> NDArray[np.float64]: ...
    @property
    def is_flagged(self) -> NDArray[np.bool_]: ...
    @property
    def reasons(self) -> dict[int, list[dict[str, Any]]]: ...


class Scorer(Protocol):
    """What a worker needs of a loaded bundle."""

    @property
    def bundle_id(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    def score(self, columns: dict[str, NDArray[Any]], /) -> Scores: ...


class ModelError(ServiceError):
    """The model fails on every record, so the records are not to blame."""


@dataclass
class Outputs:
    """Rows to publish, by partition, and what they count.

    Attributes
    ----------
    scores, alerts, dead_letters : partition -> rows in the order of the input.
    scored : transactions with a score.
    alert_fields : field that surprised most, one per alert.
    causes : class of error, one per dead letter.
    """

    scores: dict[int, list[Row]] = field(default_factory=dict)
    alerts: dict[int, list[Row]] = field(default_factory=dict)
    dead_letters: dict[int, list[Row]] = field(default_factory=dict)
    scored: int = 0
    alert_fields: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)


def process(messages: Sequence[Message], scorer: Scorer) -> Outputs:
    """Decode, score and encode one batch with one bundle.

    Raises
    ------
    ModelError
        If the model cannot score anything.
    """
    out = Outputs()
    decoded = decode([m.value for m in messages])
    for row, why in decoded.rejected.items():
        _dead_letter(out, messages[row], "SchemaError", why)
    if decoded.rows:
        _score(out, messages, decoded, scorer, 0, len(decoded.rows))
    return out


def _score(out: Outputs, messages: Sequence[Message], decoded: Decoded, scorer: Scorer, start: int, stop: int) -> None:
    """Score the good records [start, stop); halves the range around a record that the model fails on."""
    columns = {name: array[start:stop] for name, array in decoded.columns.items()}
    try:
        scores = scorer.score(columns)
        if len(scores.anomaly_score) != stop - start:
            raise ValueError(f"expected {stop - start} scores, found {len(scores.anomaly_score)}")
    except Exception as err:
        if stop - start > 1:
            middle = (start + stop) // 2
            _score(out, messages, decoded, scorer, start, middle)
            _score(out, messages, decoded, scorer, middle, stop)
            return
        _check_model(scorer, err)
        _dead_letter(out, messages[decoded.rows[start]], "ScoreError", f"the model failed on it: {type(err).__name__}")
        return
    _encode(out, messages, decoded, scorer, scores, start)


def _check_model(scorer: Scorer, cause: Exception) -> None:
    try:
        if np.isfinite(scorer.score(_PROBE).anomaly_score).all():
            return
    except Exception as err:
        cause = err
    text = f"bundle {scorer.bundle_id} fails on a plain trip too ({type(cause).__name__}); promote another bundle"
    raise ModelError(text) from cause


def _encode(
    out: Outputs, messages: Sequence[Message], decoded: Decoded, scorer: Scorer, scores: Scores, start: int
) -> None:
    stamp, threshold, bundle_id = now(), float(scorer.threshold), scorer.bundle_id
    reasons, dumps = scores.reasons, orjson.dumps
    values, flags = scores.anomaly_score.tolist(), scores.is_flagged.tolist()
    finite = np.isfinite(scores.anomaly_score).tolist()
    for i, value in enumerate(values):
        message = messages[decoded.rows[start + i]]
        if not finite[i]:
            _check_model(scorer, ArithmeticError("no finite score"))
            _dead_letter(out, message, "ScoreError", "the model gave it no finite score")
            continue
        transaction_id, partition = decoded.transaction_ids[start + i] or _id_of(message), message.partition
        score = {
            "transaction_id": transaction_id,
            "anomaly_score": value,
            "threshold": threshold,
            "is_flagged": flags[i],
            "reasons": reasons.get(i, []),
            "bundle_id": bundle_id,
            "src_partition": partition,
            "src_offset": message.offset,
            "scored_at": stamp,
        }
        if accepted_at := decoded.accepted_at[start + i]:
            score["accepted_at"] = accepted_at
        key = transaction_id.encode()
        out.scores.setdefault(partition, []).append((key, dumps(score), []))
        if flags[i]:
            score["transaction"] = orjson.Fragment(message.value or b"{}")
            out.alerts.setdefault(partition, []).append((key, dumps(score), []))
            out.alert_fields.append(str(score["reasons"][0]["field"]) if score["reasons"] else "none")
        out.scored += 1


def _id_of(message: Message) -> str:
    """Identity of a record that names none: the message's key where it is one, else its place in the topic."""
    if message.key is not None and _is_id(message.key):
        return message.key.decode()
    return f"{message.partition}-{message.offset}"


def _dead_letter(out: Outputs, message: Message, error: str, why: str) -> None:
    headers = {
        "error": error,
        "reason": why,
        "src_topic": message.topic,
        "src_partition": str(message.partition),
        "src_offset": str(message.offset),
        "failed_at": now(),
    }
    row: Row = (message.key, message.value, [(name, text.encode()) for name, text in headers.items()])
    out.dead_letters.setdefault(message.partition, []).append(row)
    out.causes.append(error)
