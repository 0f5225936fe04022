"""What a worker writes for a batch of messages: scores, alerts and dead letters, encoded, by partition."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib.errors import ServiceError
from fraudlib.manifest import now
from fraudlib.wire.columnar import decode
from fraudlib.wire.kafka import Row
from fraudlib.wire.records import ID_PATTERN, Decoded

_is_id = re.compile(ID_PATTERN.encode().removeprefix(b"^").removesuffix(b"$")).fullmatch

# A plain trip that any working model can score; where it fails too, the model is at fault and not the record.
_PROBE: Final = {
    "trip_distance": np.array([2.5]),
    "fare_amount": np.array([12.5]),
    "duration_minutes": np.array([15.0]),
}


PIECE: Final = 4096  # messages that are decoded at a time
_decoder: Final = ThreadPoolExecutor(1, thread_name_prefix="decode")


class Message(Protocol):
    """The parts of a Kafka message that a worker reads."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Record(NamedTuple):
    """A message that can go to another process."""

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
    anomaly_scores : theirs, one array for each piece of the batch.
    alert_fields : field that surprised most, one per alert.
    causes : class of error, one per dead letter.
    """

    scores: dict[int, list[Row]] = field(default_factory=dict)
    alerts: dict[int, list[Row]] = field(default_factory=dict)
    dead_letters: dict[int, list[Row]] = field(default_factory=dict)
    scored: int = 0
    anomaly_scores: list[NDArray[np.float64]] = field(default_factory=list)
    alert_fields: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """A piece of a batch, decoded and scored.

    Attributes
    ----------
    decoded : without its columns. scores : of its good records, None where there are none.
    """

    decoded: Decoded
    scores: Scores | None


def decode_ahead(messages: Sequence[Message], around: AbstractContextManager[None]) -> "Future[Decoded]":
    """Begin to decode the first piece of a batch before it is its turn.

    Parameters
    ----------
    around : entered while it is being decoded.
    """
    values = [m.value for m in messages[:PIECE]]

    def run() -> Decoded:
        with around:
            return decode(values)

    return _decoder.submit(run)


def process(messages: Sequence[Message], scorer: Scorer, ahead: "Future[Decoded] | None" = None) -> Outputs:
    """Decode, score and encode one batch with one bundle.

    Parameters
    ----------
    ahead : the first piece, from `decode_ahead`, where that was begun.

    Raises
    ------
    ModelError
        If the model cannot score anything.
    """
    out = Outputs()
    pieces = [messages[start : start + PIECE] for start in range(0, len(messages), PIECE)]
    for piece, decoded in zip(pieces, _decoded_in_turn(pieces, ahead), strict=True):
        _reject(out, piece, decoded)
        if decoded.rows:
            _score(out, piece, decoded, scorer, 0, len(decoded.rows))
    return out


def judge(values: Sequence[bytes | None], scorer: Scorer) -> list[Judged]:
    """Decode and score one batch by one thread, in a process that does no more than that.

    Raises
    ------
    Exception
        Whatever the model raises: which record it is about, `process` finds out.
    """
    judged = []
    for start in range(0, len(values), PIECE):
        decoded = decode(values[start : start + PIECE])
        scores = scorer.score(decoded.columns) if decoded.rows else None
        if scores is not None and len(scores.anomaly_score) != len(decoded.rows):
            raise ValueError(f"expected {len(decoded.rows)} scores, found {len(scores.anomaly_score)}")
        judged.append(Judged(replace(decoded, columns={}), scores))
    return judged


def write(messages: Sequence[Message], judged: Sequence[Judged], scorer: Scorer) -> Outputs:
    """Outputs of a batch that was judged by the same bundle, as `process` makes them; raises as that does."""
    out = Outputs()
    for number, piece in enumerate(judged):
        its_messages = messages[number * PIECE : (number + 1) * PIECE]
        _reject(out, its_messages, piece.decoded)
        if piece.scores is not None:
            _encode(out, its_messages, piece.decoded, scorer, piece.scores, 0)
    return out


def _reject(out: Outputs, messages: Sequence[Message], decoded: Decoded) -> None:
    for row, why in decoded.rejected.items():
        dead_letter(out, messages[row], "SchemaError", why)


def _decoded_in_turn(pieces: Sequence[Sequence[Message]], ahead: "Future[Decoded] | None" = None) -> Iterator[Decoded]:
    """Each piece decoded, while the one before is being scored: both mostly run outside the interpreter's lock."""
    if len(pieces) == 1 and ahead is None:
        yield decode([m.value for m in pieces[0]])
        return
    for piece in (*(pieces if ahead is None else pieces[1:]), None):
        following = _decoder.submit(decode, [m.value for m in piece]) if piece is not None else None
        if ahead is not None:
            yield ahead.result()
        ahead = following


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
        dead_letter(out, messages[decoded.rows[start]], "ScoreError", f"the model failed on it: {type(err).__name__}")
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
    n = len(scores.anomaly_score)
    finite = np.isfinite(scores.anomaly_score)
    if not finite.all():
        _check_model(scorer, ArithmeticError("no finite score"))
    taken = [messages[row] for row in decoded.rows[start : start + n]]
    names = [name or _id_of(m) for name, m in zip(decoded.transaction_ids[start : start + n], taken, strict=True)]
    writer = _Writer(scorer, taken, names, decoded.accepted_at[start : start + n])
    values = writer.unflagged(np.where(finite, scores.anomaly_score, 0.0))
    keys = [name.encode() for name in names]
    for i in np.flatnonzero(scores.is_flagged & finite).tolist():
        reasons = scores.reasons.get(i, [])
        values[i] = writer.flagged(i, float(scores.anomaly_score[i]), reasons)
        alert = values[i][:-1] + b',"transaction":' + (taken[i].value or b"{}") + b"}"
        out.alerts.setdefault(taken[i].partition, []).append((keys[i], alert, []))
        out.alert_fields.append(str(reasons[0]["field"]) if reasons else "none")
    out.anomaly_scores.append(scores.anomaly_score[finite])
    if finite.all():
        _add_scores(out, [m.partition for m in taken], list(zip(keys, values, repeat([]))))
        return
    for i in np.flatnonzero(~finite).tolist():
        dead_letter(out, taken[i], "ScoreError", "the model gave it no finite score")
    good = np.flatnonzero(finite).tolist()
    _add_scores(out, [taken[i].partition for i in good], [(keys[i], values[i], []) for i in good])


def _add_scores(out: Outputs, partitions: Sequence[int], rows: list[Row]) -> None:
    """Append rows to their partitions; those of a partition mostly stand together."""
    starts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), len(rows)]
    for start, stop in pairwise(starts):
        if start < stop:
            out.scores.setdefault(partitions[start], []).extend(rows[start:stop])
    out.scored += len(rows)


class _Writer:
    """Writes the scores of one batch as JSON; what is the same for all of them is encoded once.

    Identities and stamps were checked to be of characters that JSON takes as they are.

    Parameters
    ----------
    messages, names, stamps : of the scored transactions, in order.
    """

    def __init__(
        self, scorer: Scorer, messages: Sequence[Message], names: Sequence[str], stamps: Sequence[str | None]
    ) -> None:
        threshold, bundle = orjson.dumps(float(scorer.threshold)).decode(), orjson.dumps(scorer.bundle_id).decode()
        end = f',"scored_at":"{now()}"'
        self._threshold = f',"threshold":{threshold},"is_flagged":'
        self._bundle = f',"bundle_id":{bundle},"src_partition":'
        # What scores without severities, such as a bundle of an early run, asks for review only.
        block: float | None = getattr(scorer, "block", None)
        self._block = np.inf if block is None else block
        self._names = names
        self._places = [f'{m.partition},"src_offset":{m.offset}' for m in messages]
        self._ends = [f'{end},"accepted_at":"{stamp}"}}' if stamp else end + "}" for stamp in stamps]

    def unflagged(self, values: NDArray[np.float64]) -> list[bytes]:
        """JSON of every score (n,) as one that is not flagged."""
        middle = f'{self._threshold}false,"severity":null,"reasons":[]{self._bundle}'
        numbers = orjson.dumps(values.tolist())[1:-1].decode().split(",")
        return [
            f'{{"transaction_id":"{name}","anomaly_score":{number}{middle}{place}{end}'.encode()
            for name, number, place, end in zip(self._names, numbers, self._places, self._ends, strict=True)
        ]

    def flagged(self, row: int, value: float, reasons: list[dict[str, Any]]) -> bytes:
        """JSON of one score that is flagged."""
        number, severity = orjson.dumps(value).decode(), "block" if value > self._block else "review"
        why = orjson.dumps(reasons, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        return (
            f'{{"transaction_id":"{self._names[row]}","anomaly_score":{number}{self._threshold}true,'
            f'"severity":"{severity}","reasons":{why}{self._bundle}{self._places[row]}{self._ends[row]}'
        ).encode()


def _id_of(message: Message) -> str:
    """Identity of a record that names none: the message's key where it is one, else its place in the topic."""
    if message.key is not None and _is_id(message.key):
        return message.key.decode()
    return f"{message.partition}-{message.offset}"


def dead_letter(out: Outputs, message: Message, error: str, why: str) -> None:
    """Add a message to the dead letters: its key and bytes, and in the headers what is wrong and where it was."""
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
