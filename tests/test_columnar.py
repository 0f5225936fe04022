"""Batches that Arrow decodes come out as the careful decoder has them, or are left to it."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraudlib.schema import COLUMNS
from fraudlib.wire import alike, columnar, records

TRIP = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
FULL: dict[str, Any] = {
    "transaction_id": "t-1",
    "pickup_datetime": "2023-03-01T12:00:00",
    "dropoff_datetime": "2023-03-01T12:15:00.500000",
    "vendor_id": 2,
    "trip_distance": 2.5,
    "fare_amount": 12.5,
    "payment_type": None,
    "store_and_fwd_flag": "N",
    "service": "green",
    "accepted_at": "2023-06-01T00:00:00.000Z",
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches go the same way, and those of like records too."""
    monkeypatch.setattr(columnar, "FEWEST", 1)
    monkeypatch.setattr(alike, "decode", lambda values: None)


def assert_same(values: list[bytes | None]) -> records.Decoded:
    """Both decoders agree on a batch, column by column."""
    fast, careful = columnar.decode(values), records.decode(values)
    assert fast.rejected == careful.rejected
    assert list(fast.rows) == list(careful.rows)
    assert list(fast.transaction_ids) == list(careful.transaction_ids)
    assert list(fast.accepted_at) == list(careful.accepted_at)
    for name in fast.columns.keys() | careful.columns.keys():
        # A column without a value may be left out.
        empty = np.full(len(fast.rows), np.nan)
        one, other = fast.columns.get(name, empty), careful.columns.get(name, empty)
        np.testing.assert_array_equal(one.astype(other.dtype), other, err_msg=name)
    return fast


def with_fare(text: str) -> bytes:
    """The smallest trip with this text for the fare."""
    return TRIP.replace(b"12.5", text.encode())


def test_a_clean_batch_needs_no_careful_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of several shapes are decoded by Arrow alone, with the types that features take."""
    values: list[bytes | None] = [TRIP, json.dumps(FULL).encode(), TRIP]
    decoded = assert_same(values)
    assert decoded.columns["pickup_datetime"].dtype == np.dtype("datetime64[us]")
    monkeypatch.setattr(records, "decode", None)
    assert columnar.decode(values).columns["fare_amount"].tolist() == [12.5] * 3


NUMBERS = (
    "-0 5e-324 1e-400 9007199254740993 123456789012345678901234567890 0.1000000000000000055511151231257 1E5 "
    'null true "12.5" {} [] NaN -Infinity 1e999 1. 01 +1 .5 0x10 1e -'
)


@pytest.mark.parametrize("fare", [*NUMBERS.split(), "", "1" + "0" * 400, "0." + "1" * 400])
def test_numbers_are_the_same(fare: str) -> None:
    """To the last bit, or refused by the same sentence."""
    assert_same([TRIP, with_fare(fare), TRIP])


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"{}",
        b" " + TRIP,
        TRIP + b"\n",
        TRIP + b"\r\n" + TRIP,
        TRIP + TRIP,
        TRIP + b"\x00{}",
        TRIP.replace(b" ", b"\r"),
        TRIP.replace(b" ", b"\x0b"),
        TRIP.replace(b'"', b"'"),
        TRIP[:-1] + b",}",
        TRIP[:-1] + b"/**/}",
        TRIP[:-1] + b',"fare_amount": 13}',
        TRIP[:-1] + b',"PULocationID": 74}',
        TRIP[:-1] + b',"medallion": 1}',
        TRIP[:-1] + b',"passenger_count": 1.5}',
        TRIP[:-1] + b',"transaction_id": 7}',
        TRIP[:-1] + b',"transaction_id": "a\x01b"}',
        TRIP[:-1] + b',"transaction_id": "\\ud800"}',
        TRIP[:-1] + b',"transaction_id": "\xff"}',
        TRIP[:-1] + b',"store_and_fwd_flag": "' + b"N" * 65 + b'"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-02-30T00:00:00"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01T12:00:00Z"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01T24:00:00"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01T12:00:60"}',
        TRIP[:-1] + b',"pickup_datetime": "0000-03-01T12:00:00"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01 12:00:00"}',
        TRIP[:-1] + b',"pickup_datetime": "+023-03-01T12:00:00"}',
        TRIP[:-1] + b',"pickup_datetime": "2023-03-01T12: 0:00"}',
        TRIP[:-1] + b',"pickup_datetime": "9999-12-31T23:59:59"}',
        TRIP[:-1] + b',"service": "black"}',
        TRIP[:-1] + b',"accepted_at": "soon"}',
    ],
)
def test_odd_records_are_the_same(raw: bytes | None) -> None:
    """Whatever is odd about one record, all get the verdict and the values that the careful decoder has."""
    assert_same([TRIP, raw, TRIP])


@pytest.mark.parametrize(
    "crafted",
    [
        [b'{"transaction_id": "}', b'{"}'],
        [TRIP + TRIP + b"\x00{}", TRIP],
        [TRIP + b"{}", b"{}\x00}"],
        [b'{"trip_distance": [{}', b"{}]}"],
        [TRIP + b'{"a": [{}', b"{}]}" + TRIP],
    ],
)
def test_no_message_can_pass_for_parts_of_two(crafted: list[bytes | None]) -> None:
    """Halves that would be records when glued together stay broken messages."""
    assert assert_same([TRIP, *crafted, TRIP]).rejected


ANYTHING = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.none(), st.text(max_size=4))
OBJECTS = st.dictionaries(
    st.sampled_from([c.name for c in COLUMNS] + ["PULocationID", "duration_minutes", "service", "transaction_id"]),
    st.one_of(ANYTHING, st.sampled_from(["green", FULL["pickup_datetime"], FULL["dropoff_datetime"]])),
    max_size=5,
).map(lambda changes: FULL | changes)


@settings(max_examples=60, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=6))
def test_any_batch_is_the_same(objects: list[dict[str, Any]]) -> None:
    """Two decoders, one meaning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "FEWEST", 1)
        patch.setattr(alike, "decode", lambda values: None)
        assert_same([json.dumps(value).encode() for value in objects])


def test_no_batch_makes_a_worker_import_pandas() -> None:
    """What a worker loads while it runs holds its batches up: the first large batch loads no library."""
    code = f"""
import sys
from fraudlib.wire import columnar
bare, more = {TRIP!r}, {json.dumps(FULL).encode()!r}
known = set(sys.modules)
assert len(columnar.decode([bare, more] * columnar.FEWEST).rows) == 2 * columnar.FEWEST
print(sorted({{name.split(".")[0] for name in set(sys.modules) - known}} & {{"pandas", "dask", "scipy", "sklearn"}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
