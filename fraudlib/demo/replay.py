"""Send recorded trips as live transactions, through the API or straight to the topic, at a steady rate."""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib import fraud, trips
from fraudlib.demo.senders import MOST_PER_SEND, Sender
from fraudlib.schema import BY_NAME, SERVICES
from fraudlib.scorefile import is_simulated

SENDS_PER_SECOND: Final = 20
CHUNK_ROWS: Final = 65_536


def _values(name: str, column: NDArray[Any]) -> list[Any]:
    """Column as JSON values, None for null: whole numbers for codes, ISO times, the service's name."""
    if name == "service":
        return [SERVICES[int(v)] if v == v else None for v in column.tolist()]
    if column.dtype.kind == "M":
        return list(column.astype("datetime64[us]").astype(object).tolist())
    if name in BY_NAME and BY_NAME[name].kind == "integer":
        return [int(v) if v == v else None for v in column.tolist()]
    return [v if v == v else None for v in column.tolist()]


def encode(columns: Mapping[str, NDArray[Any]], ids: Sequence[str]) -> list[bytes]:
    """Rows as JSON records with their transaction_id; nulls are left out.

    Parameters
    ----------
    columns : mapping of arrays of shape (n,)
        Trips as `fraudlib.trips.to_columns` gives them.
    ids : sequence of n str
        One transaction_id for each row.
    """
    names = ("transaction_id", *columns)
    rows = zip(ids, *(_values(name, column) for name, column in columns.items()), strict=True)
    return [orjson.dumps({k: v for k, v in zip(names, row, strict=True) if v is not None}) for row in rows]


class Pace:
    """Spreads sends evenly over time; a rate of 0 does not wait. Time lost to a busy other side is not caught up."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.step = MOST_PER_SEND if not rate else max(1, min(MOST_PER_SEND, round(rate / SENDS_PER_SECOND)))
        self._due = time.monotonic()

    def wait(self, count: int, stop: Event) -> bool:
        """Wait until `count` more records may go; True when `stop` was set meanwhile."""
        if not self.rate:
            return stop.is_set()
        now = time.monotonic()
        self._due = max(self._due, now - 1.0)
        stopped = stop.wait(max(0.0, self._due - now))
        self._due += count / self.rate
        return stopped


@dataclass(frozen=True)
class Plan:
    """What to replay.

    Attributes
    ----------
    source : file or folder of trips.
    rate : trips a second, 0 for as fast as the other side takes them.
    limit : most trips to send, None for all.
    fraud : share of the trips to plant fraud into, 0 to below 1.
    seed : of the planting.
    repeat : begin again at the end, with new ids and other frauds.
    """

    source: Path
    rate: float = 0.0
    limit: int | None = None
    fraud: float = 0.0
    seed: int = 7
    repeat: bool = False


@dataclass
class Summary:
    """What one replay did."""

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    planted: int = 0
    retries: int = 0
    seconds: float = 0.0
    simulated: bool = False
    interrupted: bool = False
    refusals: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Summary as a JSON object."""
        rate = round(self.accepted / self.seconds, 1) if self.seconds else 0.0
        return {**vars(self), "seconds": round(self.seconds, 3), "rate": rate}

    def __str__(self) -> str:
        kind = "simulated trips" if self.simulated else "trips"
        parts = [f"{self.sent:,} {kind} sent, {self.accepted:,} accepted, {self.refused:,} refused"]
        if self.planted:
            parts.append(f"{self.planted:,} planted frauds")
        if self.retries:
            parts.append(f"{self.retries:,} retries")
        parts.append(f"{self.seconds:.1f} s, {self.accepted / max(self.seconds, 1e-9):,.0f} trips/s")
        text = ("interrupted: " if self.interrupted else "") + ", ".join(parts)
        return "\n".join([text, *(f"  refused {n:,}: {why}" for why, n in self.refusals.items())])


@dataclass(frozen=True)
class Wave:
    """Trips ready to be sent: ids, JSON records, and the kind of the planted fraud ("" where honest)."""

    ids: list[str]
    records: list[bytes]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> "Wave":
        """Trips from `start` to before `stop`."""
        return Wave(self.ids[start:stop], self.records[start:stop], self.kinds[start:stop])


def plant(columns: Mapping[str, NDArray[Any]], share: float, seed: int) -> tuple[Mapping[str, NDArray[Any]], list[str]]:
    """Trips of n rows with fraud planted into a share of them, and the kind of each row, "" where honest."""
    n = len(columns["trip_distance"])
    frauds = round(share * n)
    if not frauds:
        return columns, [""] * n
    # Each kind is planted at least once, so that a short input takes fewer kinds or its share would be exceeded.
    order = np.random.default_rng(seed).permutation(len(fraud.LISTED))[:frauds]
    planted = fraud.plant(columns, share, seed, [fraud.LISTED[i] for i in sorted(order)])
    return planted.columns, planted.kind.tolist()


def waves(plan: Plan) -> Iterator[Wave]:
    """Trips of a plan in waves of at most CHUNK_ROWS, at constant memory; ids are FILE-ROW, or new ones to repeat."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", plan.source.stem)[:48]
    # What is sent for ever is never the same transaction again, whether in another round or after another start.
    prefix = f"{name}-{secrets.token_hex(4)}" if plan.repeat else name
    row = 0
    rounds = itertools.count() if plan.repeat else range(1)
    for batch in itertools.chain.from_iterable(trips.batches(plan.source, CHUNK_ROWS) for _ in rounds):
        if plan.limit is not None:
            batch = batch.slice(0, plan.limit - row)
        ids = [f"{prefix}-{i}" for i in range(row, row + batch.num_rows)]
        columns, kinds = plant(trips.to_columns(batch), plan.fraud, plan.seed + row)
        yield Wave(ids, encode(columns, ids), kinds)
        row += batch.num_rows
        if row == plan.limit:
            return


def replay(plan: Plan, sender: Sender, progress: Callable[[int], object]) -> Summary:
    """Send every trip of a plan; Ctrl-C ends it early with what was sent so far.

    Raises
    ------
    ServiceError
        If the other side stays away for longer than the sender's patience.
    SchemaError, DataError
        If the input is not trips.
    """
    summary = Summary(simulated=is_simulated(plan.source))
    pace = Pace(plan.rate)
    never = Event()
    started = time.perf_counter()
    try:
        for trips_ready in waves(plan):
            for start in range(0, len(trips_ready), pace.step):
                part = trips_ready.part(start, start + pace.step)
                pace.wait(len(part), never)
                _note(summary, part, sender)
                progress(len(part))
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.seconds = time.perf_counter() - started
    summary.retries = sender.retries
    return summary


def _note(summary: Summary, part: Wave, sender: Sender) -> None:
    answer = sender.send(part.ids, part.records)
    summary.sent += len(part)
    summary.accepted += len(answer.accepted)
    summary.refused += len(answer.refused)
    summary.planted += sum(map(bool, part.kinds))
    for why in answer.refused.values():
        # Reasons are few; were they many, the first ten say enough.
        if why in summary.refusals or len(summary.refusals) < 10:
            summary.refusals[why] = summary.refusals.get(why, 0) + 1
