"""The usual transaction, one or a few, recognised without arrays: nine in ten of them need no more than this.

`fraudlib.wire.records.check` is made for many rows and decides alone what is wrong with one; here one is either as
plain as can be, and then that check finds nothing, or it goes there.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import orjson

from fraudlib.schema import COLUMNS, REQUIRED_FIELDS, SERVICES, TIME_COLUMNS
from fraudlib.wire.records import ACCEPTED_AT, NUMBERS, Decoded, is_id, plan_of, stamps

_is_local_time = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?", re.ASCII).fullmatch


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def _is_time(value: Any) -> bool:
    if type(value) is not str or not _is_local_time(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


_KINDS: Final[dict[str, Callable[[Any], bool]]] = {
    "integer": _is_whole,
    "float": _is_number,
    "time": _is_time,
    "text": lambda value: type(value) is str and len(value) <= 64,
}
_TESTS: Final[dict[str, Callable[[Any], bool]]] = {column.name: _KINDS[column.kind] for column in COLUMNS} | {
    "duration_minutes": _is_number,
    "service": lambda value: type(value) is str and value in SERVICES,
    "transaction_id": lambda value: type(value) is str and is_id(value) is not None,
    ACCEPTED_AT: lambda value: True,
}
*_NEEDED, _DURATION = REQUIRED_FIELDS


def plain(value: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Trip under canonical names and the names of unknown fields, None where the full check has to look at it.

    Parameters
    ----------
    value : object that a JSON parser that refuses NaN and Infinity returned.
    """
    plan = plan_of(tuple(value))
    if plan.twice:
        return None
    trip = value
    if not plan.is_canonical:
        trip = {name: item for name, item in zip(plan.names, value.values(), strict=True) if name is not None}
        if plan.service and trip.get("service") is None:
            trip["service"] = plan.service
    for name, item in trip.items():
        if item is not None and not _TESTS[name](item):
            return None
    if any(trip.get(name) is None for name in _NEEDED):
        return None
    if trip.get(_DURATION) is None and any(trip.get(name) is None for name in TIME_COLUMNS):
        return None
    return trip, plan.unknown


_SERVICE_CODES: Final = {name: float(code) for code, name in enumerate(SERVICES)}


def decode_few(values: Sequence[bytes | None]) -> Decoded | None:
    """A few messages decoded as `records.decode` does it, at a fraction of its cost; None where one is not plain."""
    trips: list[dict[str, Any]] = []
    for value in values:
        try:
            parsed = orjson.loads(value)  # type: ignore[arg-type]
        except (orjson.JSONDecodeError, TypeError):
            return None
        found = plain(parsed) if type(parsed) is dict else None
        if found is None:
            return None
        trips.append(found[0])
    names = trips[0].keys() | set().union(*trips[1:])
    numbers = [name for name in NUMBERS if name in names]
    table = np.array([[trip.get(name) for trip in trips] for name in numbers], dtype=np.float64)
    columns: dict[str, Any] = dict(zip(numbers, table, strict=True))
    for name in (name for name in TIME_COLUMNS if name in names):
        columns[name] = np.array([trip.get(name) for trip in trips], dtype="datetime64[us]")
    if "service" in names:
        columns["service"] = np.array([_SERVICE_CODES.get(trip.get("service", ""), np.nan) for trip in trips])
    ids = [trip.get("transaction_id") or "" for trip in trips]
    return Decoded(columns, ids, stamps([trip.get(ACCEPTED_AT) for trip in trips]), range(len(trips)), {})
