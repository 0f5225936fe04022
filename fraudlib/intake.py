"""From a request's bytes to acknowledged messages: parse, check, name, stamp, publish; one at a time or in bulk."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from fraudlib.kafka import NotSentError, OutcomeUnknownError, Publisher, Row, partitions_of
from fraudlib.manifest import now
from fraudlib.problems import Problem
from fraudlib.records import ACCEPTED_AT, check, has_duplicate_key, reason
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.telemetry import ApiMetrics

CHUNK: Final = 1000
CHUNKS_UNDER_WAY: Final = 4


def new_ids(count: int) -> list[str]:
    """Random UUIDs (version 4), made together."""
    raw = os.urandom(16 * count).hex()
    words = (raw[i : i + 32] for i in range(0, 32 * count, 32))
    return [f"{w[:8]}-{w[8:12]}-4{w[13:16]}-a{w[17:20]}-{w[20:]}" for w in words]


def parse_object(body: bytes) -> dict[str, Any]:
    """The one JSON object of a body.

    Raises
    ------
    Problem
        400 where it is no JSON or names a field twice, 422 where it is no object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise Problem(400, f"expected a JSON object in UTF-8: {err.msg}") from err
    if not isinstance(value, dict):
        raise Problem(422, "expected a JSON object with the fields of a trip")
    if has_duplicate_key(body, value):
        raise Problem(400, "expected each field once, found one twice")
    return value


def prepare(value: dict[str, Any], given_id: str | None) -> tuple[str, bytes, tuple[str, ...]]:
    """Identity, message and ignored fields of one transaction.

    Parameters
    ----------
    given_id : identity from the Idempotency-Key header.

    Raises
    ------
    Problem
        422 with one entry in `errors` for each field at fault.
    """
    checked = check([value])
    if faults := checked.faults.get(0):
        errors = [{"field": name, "problem": what} for name, what in faults.items()]
        raise Problem(422, reason(faults), errors=errors)
    trip = checked.objects[0]
    own_id = trip.get("transaction_id")
    if own_id and given_id and own_id != given_id:
        raise Problem(422, "transaction_id and Idempotency-Key differ; send one of them")
    transaction_id = own_id or given_id or new_ids(1)[0]
    return transaction_id, _message(trip, transaction_id, now()), checked.ignored.get(0, ())


def _message(trip: dict[str, Any], transaction_id: str, stamp: str) -> bytes:
    trip["transaction_id"] = transaction_id
    trip[ACCEPTED_AT] = stamp
    return orjson.dumps(trip)


def outcome_problem(err: NotSentError | OutcomeUnknownError) -> Problem:
    """The answer for a message that the broker did not acknowledge."""
    if isinstance(err, NotSentError):
        return Problem(503, str(err), "not-sent", {"Retry-After": "1"})
    return Problem(504, f"{err}; asking again with the same transaction_id is safe", "outcome-unknown")


@dataclass
class Bulk:
    """Takes many transactions in chunks; each gets its own result.

    Attributes
    ----------
    results : one per item, in the order of the input.
    """

    publisher: Publisher
    metrics: ApiMetrics
    results: list[dict[str, Any]] = field(default_factory=list)
    _sends: set["asyncio.Task[None]"] = field(default_factory=set)

    async def take_lines(self, lines: Sequence[bytes]) -> None:
        """Take one chunk of NDJSON lines."""
        values: list[Any] = []
        wrong: dict[int, str] = {}
        try:
            values = list(map(orjson.loads, lines))
        except orjson.JSONDecodeError:
            for row, line in enumerate(lines):
                try:
                    values.append(orjson.loads(line))
                except orjson.JSONDecodeError as err:
                    values.append(None)
                    wrong[row] = f"expected a JSON object in UTF-8: {err.msg}"
        for row, (line, value) in enumerate(zip(lines, values, strict=True)):
            if type(value) is dict and has_duplicate_key(line, value):
                wrong[row] = "expected each field once, found one twice"
        await self.take(values, wrong)

    async def take(self, values: Sequence[Any], wrong: dict[int, str] | None = None) -> None:
        """Take one chunk of parsed values; `wrong` names what is known to be no record."""
        checked = check(values)
        wrong = {row: reason(faults) for row, faults in checked.faults.items()} | (wrong or {})
        stamp, first = now(), len(self.results)
        fresh_ids = new_ids(len(values))
        rows: list[Row] = []
        places: list[int] = []
        for row, trip in enumerate(checked.objects):
            result: dict[str, Any] = {"index": first + row}
            self.results.append(result)
            if row in wrong:
                result |= {"status": "invalid", "error": wrong[row]}
                continue
            transaction_id = result["transaction_id"] = trip.get("transaction_id") or fresh_ids[row]
            rows.append((transaction_id.encode(), _message(trip, transaction_id, stamp), []))
            places.append(first + row)
        self.metrics.items.labels("invalid").inc(len(wrong))
        if rows:
            while len(self._sends) >= CHUNKS_UNDER_WAY:
                await asyncio.wait(self._sends, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._send(rows, places))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def finish(self) -> None:
        """Wait until every item's outcome is known."""
        while self._sends:
            await asyncio.wait(self._sends)

    async def _send(self, rows: list[Row], places: list[int]) -> None:
        try:
            count = await self.publisher.partitions(TOPIC_TRANSACTIONS)
        except NotSentError as err:
            return self._settle(places, 0, err)
        by_partition: dict[int, tuple[list[Row], list[int]]] = {}
        numbers = partitions_of([row[0] or b"" for row in rows], count).tolist()
        for number, row, place in zip(numbers, rows, places, strict=True):
            mine = by_partition.setdefault(number, ([], []))
            mine[0].append(row)
            mine[1].append(place)
        await asyncio.gather(*(self._send_partition(number, *mine) for number, mine in by_partition.items()))

    async def _send_partition(self, partition: int, rows: list[Row], places: list[int]) -> None:
        try:
            with self.metrics.publish.time():
                await self.publisher.send_rows(TOPIC_TRANSACTIONS, partition, rows)
        except (NotSentError, OutcomeUnknownError) as err:
            self._settle(places, err.acknowledged, err)
        else:
            self._settle(places, len(rows), None)

    def _settle(self, places: list[int], acknowledged: int, err: NotSentError | OutcomeUnknownError | None) -> None:
        for place in places[:acknowledged]:
            self.results[place]["status"] = "accepted"
        self.metrics.items.labels("accepted").inc(acknowledged)
        if err is not None:
            status = "not-sent" if isinstance(err, NotSentError) else "outcome-unknown"
            for place in places[acknowledged:]:
                self.results[place] |= {"status": status, "error": str(err)}
            self.metrics.items.labels(status.replace("-", "_")).inc(len(places) - acknowledged)


async def lines_of(stream: AsyncIterator[bytes], longest: int) -> AsyncIterator[list[bytes]]:
    """Chunks of the non-empty lines of a body as it arrives.

    Raises
    ------
    Problem
        413 for a line longer than `longest` bytes.
    """
    rest = b""
    chunk: list[bytes] = []
    async for part in stream:
        head, *tail = part.split(b"\n")
        rest += head
        for line in tail:
            if rest.strip():
                chunk.append(rest)
            rest = line
        if len(rest) > longest:
            raise Problem(413, f"expected lines of at most {longest} bytes")
        while len(chunk) >= CHUNK:
            yield chunk[:CHUNK]
            chunk = chunk[CHUNK:]
    if rest.strip():
        chunk.append(rest)
    if chunk:
        yield chunk
