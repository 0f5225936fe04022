"""Transactions as JSON: checked strictly, by column, and turned into the arrays that features take.

The API and the worker share this file, so what the one accepts the other can read.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from itertools import repeat
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib.schema import BY_NAME, NUMBER_COLUMNS, SERVICES, TIME_COLUMNS, canonical_name, service_of

ID_PATTERN: Final = r"^[A-Za-z0-9._:-]{1,64}$"
is_id = re.compile(ID_PATTERN.removeprefix("^").removesuffix("$"), re.ASCII).fullmatch
_is_stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII).fullmatch
_ID_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
_TIME_CHARACTERS: Final = b"0123456789-T:."
_TIME_PLACES: Final = [4, 7, 10, 13, 16]
_TIME_MARKS: Final = np.frombuffer(b"--T::", np.uint8)

ACCEPTED_AT: Final = "accepted_at"
MOST_TEXT: Final = 64
NUMBERS: Final = (*NUMBER_COLUMNS, "duration_minutes")
TEXTS: Final = tuple(c.name for c in BY_NAME.values() if c.kind == "text")
MUST: Final = ("trip_distance", "fare_amount")
_FOUND: Final = {str: "text", bool: "true or false", list: "a list", dict: "an object", float: "a number"} | {
    int: "a number",
    type(None): "null",
}


@dataclass
class Checked:
    """Objects under canonical names, and what is wrong with them.

    Attributes
    ----------
    objects : one dict per input, known fields only; empty where the input was no object.
    columns : arrays of all inputs, one value per input, NaN or NaT where missing or wrong.
    transaction_ids : "" where missing or wrong.
    accepted_at : when the API took it, None where missing or no UTC time.
    faults : position -> field -> what is wrong, without the value.
    ignored : position -> names of unknown fields.
    rewritten : positions whose names or times are not as they were given.
    """

    objects: list[dict[str, Any]]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    transaction_ids: Sequence[str] = ()
    accepted_at: Sequence[str | None] = ()
    faults: dict[int, dict[str, str]] = field(default_factory=dict)
    ignored: dict[int, tuple[str, ...]] = field(default_factory=dict)
    rewritten: set[int] = field(default_factory=set)

    def blame(self, rows: Iterable[int], name: str, what: str) -> None:
        """Note the first fault of a field for each of the rows."""
        for row in rows:
            self.faults.setdefault(row, {}).setdefault(name, what)


@dataclass(frozen=True)
class Decoded:
    """The good records of a batch, by column.

    Attributes
    ----------
    columns : arrays of the good records, see `fraudlib.schema`; numbers float64, times datetime64[us].
    transaction_ids : of the good records, "" where a record brings none.
    accepted_at : when the API took each good record (UTC, ISO 8601 with Z), None where unknown.
    rows : positions of the good records in the batch.
    rejected : position -> reason, naming the field.
    """

    columns: dict[str, NDArray[Any]]
    transaction_ids: Sequence[str]
    accepted_at: Sequence[str | None]
    rows: Sequence[int]
    rejected: dict[int, str]


@dataclass(frozen=True)
class Plan:
    """What the keys of an object mean."""

    names: tuple[str | None, ...]
    is_canonical: bool
    twice: tuple[str, ...]
    service: str | None
    unknown: tuple[str, ...]


def _make_plan(keys: tuple[str, ...]) -> Plan:
    names = tuple(key if key == ACCEPTED_AT else canonical_name(key) for key in keys)
    known = [name for name in names if name is not None]
    services = {service for key in keys if (service := service_of(key)) and canonical_name(key)}
    return Plan(
        names,
        names == keys,
        tuple({name for name in known if known.count(name) > 1}) if len(set(known)) < len(known) else (),
        services.pop() if len(services) == 1 else None,
        tuple(key for key, name in zip(keys, names, strict=True) if name is None),
    )


_cached_plan = lru_cache(512)(_make_plan)


def plan_of(keys: tuple[str, ...]) -> Plan:
    """What the keys of an object mean; remembered where they are few and short."""
    # Long key lists are not remembered: they are the sender's choice, and would let him fill the memory.
    return _cached_plan(keys) if len(keys) <= 64 and sum(map(len, keys)) <= 2048 else _make_plan(keys)


def check(values: Sequence[Any]) -> Checked:
    """Check parsed JSON values as transactions.

    Parameters
    ----------
    values : what a JSON parser that refuses NaN and Infinity returned.
    """
    checked = Checked(list(values))
    table = _table(checked)
    n = len(checked.objects)
    for name in table.keys() & NUMBERS:
        checked.columns[name] = _numbers(checked, name, table[name])
    for name in table.keys() & TIME_COLUMNS:
        checked.columns[name] = times(checked, name, table[name])
    for name in table.keys() & TEXTS:
        _texts(checked, name, table[name])
    if "service" in table:
        checked.columns["service"] = services(checked, table["service"])
    checked.transaction_ids = ids(checked, table.get("transaction_id", (None,) * n))
    checked.accepted_at = stamps(table.get(ACCEPTED_AT, (None,) * n))
    require(checked, n)
    return checked


def _table(checked: Checked) -> dict[str, Sequence[Any]]:
    """Columns of the objects by canonical name."""
    objects = checked.objects
    if set(map(type, objects)) == {dict}:
        # Usual case: canonical names in a few shapes. The parser shares the keys, so comparing them is cheap.
        shapes = set(map(tuple, objects))
        if all(plan_of(keys).is_canonical for keys in shapes):
            return _columns(shapes, objects)
    return _columns(_canonise(checked), objects)


def _columns(shapes: set[tuple[str, ...]], objects: list[dict[str, Any]]) -> dict[str, Sequence[Any]]:
    if len(shapes) == 1:
        (keys,) = shapes
        return dict(zip(keys, zip(*map(dict.values, objects), strict=True), strict=True))
    return {name: list(map(dict.get, objects, repeat(name))) for name in sorted(set().union(*shapes))}


def _canonise(checked: Checked) -> set[tuple[str, ...]]:
    """Rename the fields of every object; returns the key tuples that occur afterwards."""
    objects = checked.objects
    shapes: set[tuple[str, ...]] = set()
    for row, value in enumerate(objects):
        if type(value) is not dict:
            checked.blame([row], "", f"expected a JSON object, found {_FOUND.get(type(value), 'something else')}")
            objects[row] = {}
            shapes.add(())
            continue
        keys = tuple(value)
        plan = plan_of(keys)
        if plan.is_canonical:
            shapes.add(keys)
            continue
        for name in plan.twice:
            checked.blame([row], name, "given twice under two spellings")
        if plan.unknown:
            checked.ignored[row] = plan.unknown
        renamed = {name: item for name, item in zip(plan.names, value.values(), strict=True) if name is not None}
        if plan.service and renamed.get("service") is None:
            renamed["service"] = plan.service
        objects[row] = renamed
        checked.rewritten.add(row)
        shapes.add(tuple(renamed))
    return shapes


def _wrong(checked: Checked, name: str, column: Sequence[Any], allowed: set[type], expected: str) -> Sequence[Any]:
    """Blame every value of another type, and return the column with None in its place."""
    if set(map(type, column)) <= allowed:
        return column
    rows = [row for row, value in enumerate(column) if type(value) not in allowed]
    for row in rows:
        checked.blame([row], name, f"expected {expected}, found {_FOUND.get(type(column[row]), 'something else')}")
    bad = set(rows)
    return [None if row in bad else value for row, value in enumerate(column)]


def _numbers(checked: Checked, name: str, column: Sequence[Any]) -> NDArray[np.float64]:
    column = _wrong(checked, name, column, {float, int, type(None)}, "a number")
    array = np.array(column, dtype=np.float64)
    if name in BY_NAME and BY_NAME[name].kind == "integer":
        with np.errstate(invalid="ignore"):
            broken = np.flatnonzero((array != np.trunc(array)) & ~np.isnan(array))
        if broken.size:
            checked.blame(broken.tolist(), name, "expected a whole number, found a fraction")
    return array


def services(checked: Checked, column: Sequence[Any]) -> NDArray[np.float64]:
    column = _wrong(checked, "service", column, {str, type(None)}, "text")
    code = {None: np.nan} | {name: float(i) for i, name in enumerate(SERVICES)}
    found = set(column)
    if found - set(code):
        rows = [row for row, value in enumerate(column) if value not in code]
        checked.blame(rows, "service", f"expected {' or '.join(SERVICES)}, found another name")
    if len(found) == 1:
        return np.full(len(column), code.get(found.pop(), np.nan))
    return np.array([code.get(value, np.nan) for value in column], dtype=np.float64)


def _texts(checked: Checked, name: str, column: Sequence[Any]) -> None:
    column = _wrong(checked, name, column, {str, type(None)}, "text")
    if any(value is not None and len(value) > MOST_TEXT for value in set(column)):
        rows = [row for row, value in enumerate(column) if value is not None and len(value) > MOST_TEXT]
        checked.blame(rows, name, f"expected at most {MOST_TEXT} characters, found more")


def _consists_of(texts: Sequence[str], characters: bytes) -> bool:
    return not "".join(texts).encode(errors="surrogatepass").translate(None, characters)


def ids(checked: Checked, column: Sequence[Any]) -> Sequence[str]:
    if set(map(type, column)) == {str}:
        lengths = set(map(len, column))
        if min(lengths) > 0 and max(lengths) <= 64 and _consists_of(column, _ID_CHARACTERS):
            return column
    column = _wrong(checked, "transaction_id", column, {str, type(None)}, "text")
    bad = {row for row, value in enumerate(column) if value is not None and not is_id(value)}
    checked.blame(bad, "transaction_id", "expected 1 to 64 of the characters A-Z a-z 0-9 . _ : -")
    return ["" if value is None or row in bad else value for row, value in enumerate(column)]


def stamps(column: Sequence[Any]) -> Sequence[str | None]:
    kinds = set(map(type, column))
    if kinds == {type(None)}:
        return column
    if kinds == {str} and set(map(len, column)) == {24} and _consists_of(column, _TIME_CHARACTERS + b"Z"):
        return column
    return [value if type(value) is str and _is_stamp(value) else None for value in column]


def times(checked: Checked, name: str, column: Sequence[Any]) -> NDArray[np.datetime64]:
    column = _wrong(checked, name, column, {str, type(None)}, "an ISO 8601 time")
    texts = [value for value in column if value is not None]
    # numpy parses a column at once, but also accepts what is no full time: only plain local times go that way.
    if len(lengths := set(map(len, texts))) < 2 and lengths <= {19, 26} and _is_plain("".join(texts), len(texts)):
        try:
            array = np.array(column, dtype="datetime64[us]")
        except ValueError:
            pass
        else:
            if not texts or np.nanmin(array) >= np.datetime64("0001-01-01", "us"):
                return array
    array = np.full(len(column), np.datetime64("NaT"), dtype="datetime64[us]")
    for row, value in enumerate(column):
        if value is None:
            continue
        try:
            moment = local_time(value)
        except (ValueError, OverflowError):
            checked.blame([row], name, "expected an ISO 8601 time such as 2023-03-01T12:00:00")
        else:
            array[row] = moment
            checked.objects[row][name] = moment.isoformat()
            checked.rewritten.add(row)
    return array


def _is_plain(joined: str, count: int) -> bool:
    raw = joined.encode(errors="surrogatepass")
    if len(raw) not in (19 * count, 26 * count) or raw.translate(None, _TIME_CHARACTERS):
        return False
    # Marks are looked for in their places: numpy takes 12000:00 for a time with a zone.
    at = np.frombuffer(raw, np.uint8).reshape(count, -1)[:, _TIME_PLACES] if count else _TIME_MARKS
    return bool((at == _TIME_MARKS).all())


@cache
def _new_york() -> ZoneInfo:
    return ZoneInfo("America/New_York")


def local_time(text: str) -> datetime:
    """Naive New York time of an ISO 8601 text; one with an offset is converted.

    Raises
    ------
    ValueError, OverflowError
        If it is no time of a day, or lies outside the years 1 to 9999.

    Examples
    --------
    >>> local_time("2023-03-01T12:00:00Z").isoformat(), local_time("2023-03-01 07:00").isoformat()
    ('2023-03-01T07:00:00', '2023-03-01T07:00:00')
    """
    if not 12 < len(text) <= 40:
        raise ValueError("a date and a time of day are needed")
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is None else moment.astimezone(_new_york()).replace(tzinfo=None)


def require(checked: Checked, n: int) -> None:
    for name in MUST:
        array = checked.columns.get(name)
        rows = range(n) if array is None else np.flatnonzero(np.isnan(array)).tolist()
        checked.blame(rows, name, "missing")
    lacking = np.ones(n, dtype=bool)
    if (minutes := checked.columns.get("duration_minutes")) is not None:
        lacking &= np.isnan(minutes)
    if set(TIME_COLUMNS) <= set(checked.columns):
        lacking &= np.logical_or.reduce([np.isnat(checked.columns[name]) for name in TIME_COLUMNS])
    checked.blame(
        np.flatnonzero(lacking).tolist(), "duration_minutes", f"missing, and no {' and '.join(TIME_COLUMNS)} instead"
    )


def reason(faults: dict[str, str]) -> str:
    """One sentence of a record's faults."""
    return "; ".join(f"{name}: {what}" if name else what for name, what in sorted(faults.items()))


def _parse(values: Sequence[bytes | None]) -> tuple[list[Any], dict[int, str]]:
    """JSON values, None where unparsable, with the reasons."""
    # One call for the joined batch was measured: 5 % faster, and a crafted message could then pass for parts of two.
    try:
        return list(map(orjson.loads, values)), {}  # type: ignore[arg-type]
    except (orjson.JSONDecodeError, TypeError):
        pass
    parsed: list[Any] = []
    reasons: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            parsed.append(orjson.loads(value if value is not None else b""))
        except orjson.JSONDecodeError as err:
            parsed.append(None)
            reasons[row] = f"expected JSON: {err.msg}" if value else "expected a JSON object, found an empty message"
    return parsed, reasons


def decode(values: Sequence[bytes | None]) -> Decoded:
    """Decode a batch of messages.

    Parameters
    ----------
    values : the messages' bytes; None is an empty message and rejected.
    """
    if not values:
        return Decoded({}, [], [], [], {})
    parsed, unparsable = _parse(values)
    checked = check(parsed)
    rejected = {row: unparsable.get(row) or reason(faults) for row, faults in sorted(checked.faults.items())}
    if not rejected:
        return Decoded(checked.columns, checked.transaction_ids, checked.accepted_at, range(len(values)), rejected)
    rows = [row for row in range(len(values)) if row not in rejected]
    return Decoded(
        {name: array[rows] for name, array in checked.columns.items()},
        [checked.transaction_ids[row] for row in rows],
        [checked.accepted_at[row] for row in rows],
        rows,
        rejected,
    )


def has_duplicate_key(raw: bytes, value: dict[str, Any]) -> bool:
    """Whether the JSON object `raw`, parsed to `value`, names a key twice; parsers keep the last one silently."""
    # Every key and text brings two quotes: more of them mean escapes, nesting or a key that was dropped.
    if raw.count(b'"') == 2 * (len(value) + sum(type(item) is str for item in value.values())):
        return False
    found = False

    def pairs(items: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({name for name, _ in items}) < len(items)

    json.loads(raw, object_pairs_hook=pairs)
    return found
