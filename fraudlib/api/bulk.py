"""Many transactions in one request: taken in chunks as they arrive, sent together, each with its own result."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from fraudlib.api.intake import Name, made_up, message_of, repetition
from fraudlib.api.problems import Problem
from fraudlib.manifest import now
from fraudlib.schema import TOPIC_TRANSACTIONS
from fraudlib.telemetry import ApiMetrics
from fraudlib.wire.kafka import NotSentError, OutcomeUnknownError, Publisher, Row, partitions_of
from fraudlib.wire.records import ACCEPTED_AT, Checked, check, reason

CHUNK: Final = 1000
CHUNKS_UNDER_WAY: Final = 4
MOST_INVALID: Final = 10_000
MOST_BRACKETS: Final = 100_000
MOST_FIELDS: Final = 1000  # of an item of an array
_SPACE: Final = b" \t\r"
_TWICE: Final = "expected each field once, found one twice"


class Bulk:
    """Takes transactions and keeps what became of each.

    Parameters
    ----------
    publisher, metrics : of the API.
    name : makes the identities that go on, see `intake.prepare`.

    Attributes
    ----------
    accepted : items that the broker has acknowledged.
    """

    def __init__(self, publisher: Publisher, metrics: ApiMetrics, name: Name | None = None) -> None:
        self.accepted = 0
        self._publisher, self._metrics, self._name = publisher, metrics, name
        self._ids: list[str] = []  # of every item, "" where it is no transaction
        self._failures: dict[int, tuple[str, str]] = {}  # position -> status and sentence
        self._invalid = 0
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def failed(self) -> int:
        """Items that the broker has not acknowledged."""
        return len(self._failures)

    @property
    def statuses(self) -> set[str]:
        """Statuses of the items that failed."""
        return {status for status, _ in self._failures.values()}

    def summary(self) -> dict[str, Any]:
        """Counts and the result of every item in the order of the input, for `orjson.dumps`; call after `finish`."""
        # An id was checked to be of characters that JSON takes as they are.
        rows = [f'{{"index":{i},"transaction_id":"{name}","status":"accepted"}}' for i, name in enumerate(self._ids)]
        for place, (status, error) in self._failures.items():
            name = {"transaction_id": self._ids[place]} if self._ids[place] else {}
            rows[place] = orjson.dumps({"index": place, **name, "status": status, "error": error}).decode()
        results = orjson.Fragment(f"[{','.join(rows)}]")
        return {"accepted": self.accepted, "failed": self.failed, "results": results}

    async def take_lines(self, lines: Sequence[bytes]) -> None:
        """Take one chunk of NDJSON lines, without white space around them."""
        values, wrong = _parse(lines)
        if _may_repeat(sum([line.count(b'"') for line in lines]), values):
            for row, (line, value) in enumerate(zip(lines, values, strict=True)):
                if type(value) is dict and (fault := repetition(line, value)):
                    wrong[row] = fault
        await self._take(values, wrong, lines)

    async def take_array(self, body: bytes, longest: int) -> None:
        """Take a JSON array of items of at most `longest` bytes.

        Raises
        ------
        Problem
            400 where it is no JSON, 422 where it is no array, 413 where it has too many items or parts of them, or one
            of them is too long or has too many fields.
        """
        # Counted before anything is made of them: an empty list of three bytes becomes an object of a hundred.
        if body.count(b"{") + body.count(b"[") > MOST_BRACKETS:
            raise Problem(413, f"expected an array of at most {MOST_BRACKETS} flat objects; send more as NDJSON")
        if _has_longer(body, longest):
            raise Problem(413, f"expected items of at most {longest} bytes")
        try:
            values = orjson.loads(body)
        except orjson.JSONDecodeError as err:
            raise Problem(400, f"expected a JSON array in UTF-8: {err.msg}") from err
        if not isinstance(values, list):
            raise Problem(422, "expected a JSON array of transactions")
        if any(type(value) is dict and len(value) > MOST_FIELDS for value in values):
            raise Problem(413, f"expected items of at most {MOST_FIELDS} fields")
        # In a thread, which lets others have their turn: this parser takes ten times as long.
        twice = await asyncio.to_thread(_repeating, body) if _may_repeat(body.count(b'"'), values) else set()
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            await self._take(chunk, {row: _TWICE for row in range(len(chunk)) if start + row in twice}, None)

    async def finish(self) -> None:
        """Wait until every item's outcome is known."""
        while self._sends:
            await asyncio.wait(self._sends)

    async def _take(self, values: Sequence[Any], wrong: dict[int, str], lines: Sequence[bytes] | None) -> None:
        """Take one chunk of parsed values; `wrong` names what is known to be no record."""
        checked = check(values)
        wrong = {row: reason(faults) for row, faults in checked.faults.items()} | wrong
        first = len(self._ids)
        ids, good = _named(checked, wrong, self._name)
        self._ids += ids
        self._failures |= {first + row: ("invalid", why) for row, why in wrong.items()}
        self._metrics.items.labels("invalid").inc(len(wrong))
        self._invalid += len(wrong)
        messages = _messages(checked, good, ids, lines if self._name is None else None)
        rows: list[Row] = [(ids[row].encode(), message, []) for row, message in zip(good, messages, strict=True)]
        if rows:
            while len(self._sends) >= CHUNKS_UNDER_WAY:
                await asyncio.wait(self._sends, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._send(rows, [first + row for row in good]))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)
        if self._invalid > MOST_INVALID:
            raise Problem(422, f"more than {MOST_INVALID} items can be no transaction; what follows was not looked at")
        await asyncio.sleep(0)  # others have their turn, also where all of it was there at once

    async def _send(self, rows: list[Row], places: list[int]) -> None:
        try:
            count = await self._publisher.partitions(TOPIC_TRANSACTIONS)
        except NotSentError as err:
            return self._settle(places, 0, err)
        numbers = partitions_of([row[0] or b"" for row in rows], count)
        sends = []
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number).tolist()
            sends.append(self._send_partition(number, [rows[i] for i in mine], [places[i] for i in mine]))
        await asyncio.gather(*sends)

    async def _send_partition(self, partition: int, rows: list[Row], places: list[int]) -> None:
        try:
            with self._metrics.publish.time():
                await self._publisher.send_rows(TOPIC_TRANSACTIONS, partition, rows)
        except (NotSentError, OutcomeUnknownError) as err:
            self._settle(places, err.acknowledged, err)
        else:
            self._settle(places, len(rows), None)

    def _settle(self, places: list[int], acknowledged: int, err: NotSentError | OutcomeUnknownError | None) -> None:
        self.accepted += acknowledged
        self._metrics.items.labels("accepted").inc(acknowledged)
        if err is not None:
            status = "not-sent" if isinstance(err, NotSentError) else "outcome-unknown"
            self._failures |= dict.fromkeys(places[acknowledged:], (status, str(err)))
            outcome = "not_sent" if isinstance(err, NotSentError) else "unknown"
            self._metrics.items.labels(outcome).inc(len(places) - acknowledged)


def _has_longer(body: bytes, longest: int) -> bool:
    """Whether some item is certainly longer, told from the places where objects end; texts with a `}` hide one."""
    end = 0
    while len(body) - end > longest:
        following = body.rfind(b"}", end, end + longest)
        if following < 0:
            return True
        end = following + 1
    return False


def _parse(lines: Sequence[bytes]) -> tuple[list[Any], dict[int, str]]:
    try:
        return list(map(orjson.loads, lines)), {}
    except orjson.JSONDecodeError:
        pass
    values: list[Any] = []
    wrong: dict[int, str] = {}
    for row, line in enumerate(lines):
        try:
            values.append(orjson.loads(line))
        except orjson.JSONDecodeError as err:
            values.append(None)
            wrong[row] = f"expected a JSON object in UTF-8: {err.msg}"
    return values, wrong


def _may_repeat(quotes: int, values: Sequence[Any]) -> bool:
    """Whether some object may name a key twice, which a parser drops silently.

    Every key and text that is left brings two quotes, so with as many quotes as that nothing was dropped.
    """
    if set(map(type, values)) != {dict}:
        return True
    texts = list(map(type, chain.from_iterable(map(dict.values, values)))).count(str)
    return quotes != 2 * (sum(map(len, values)) + texts)


class _Twice(dict[str, Any]):
    """An object that names a key twice."""


def _repeating(body: bytes) -> set[int]:
    """Positions of the array's items that name a key twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        return value if len(value) == len(items) else _Twice(value)

    try:
        values = json.loads(body, object_pairs_hook=pairs)
    except RecursionError:
        raise Problem(400, "expected an array of flat objects, found one nested too deeply") from None
    return {row for row, value in enumerate(values) if isinstance(value, _Twice)}


def _named(checked: Checked, wrong: dict[int, str], name: Name | None) -> tuple[list[str], Sequence[int]]:
    """Ids of a chunk, made up where missing and "" where the item is wrong, and positions of what is not."""
    ids = list(checked.transaction_ids)
    if name is not None:
        ids = [name(given) if given else "" for given in ids]
    for row in wrong:
        ids[row] = ""
    good = [row for row in range(len(ids)) if row not in wrong] if wrong else range(len(ids))
    if "" in ids:
        missing = [row for row in good if not ids[row]]
        for row, made in zip(missing, made_up(len(missing), name), strict=True):
            ids[row] = made
    return ids, good


def _messages(checked: Checked, rows: Iterable[int], ids: Sequence[str], lines: Sequence[bytes] | None) -> list[bytes]:
    """Messages of the good rows: the line, where it is given, as it came, if it only needs what is missing."""
    stamp = now()
    end = b',"accepted_at":"%b"}' % stamp.encode()
    messages = []
    for row in rows:
        trip = checked.objects[row]
        given = trip.get("transaction_id", "")
        if lines is None or given is None or row in checked.rewritten or ACCEPTED_AT in trip:
            messages.append(message_of(trip, ids[row], stamp))
        elif given:
            messages.append(lines[row][:-1] + end)
        else:
            messages.append(b'%b,"transaction_id":"%b"%b' % (lines[row][:-1], ids[row].encode(), end))
    return messages


async def lines_of(stream: AsyncIterator[bytes], longest: int) -> AsyncIterator[list[bytes]]:
    """Chunks of the non-empty lines of a body as it arrives, without white space around them.

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
        if tail:
            whole = [rest, *tail[:-1]]
            chunk += [line for raw in whole if (line := raw.strip(_SPACE))]
            rest = tail[-1]
        if len(rest) > longest:
            raise Problem(413, f"expected lines of at most {longest} bytes")
        while len(chunk) >= CHUNK:
            yield chunk[:CHUNK]
            chunk = chunk[CHUNK:]
    if last := rest.strip(_SPACE):
        chunk.append(last)
    if chunk:
        yield chunk
