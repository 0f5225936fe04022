"""Transactions are decoded strictly and by column, and a wrong one harms no other."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fraudlib.schema import COLUMNS
from fraudlib.wire import records
from fraudlib.wire.transaction import Transaction

TRIP: dict[str, Any] = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
TIMES = {"pickup_datetime": "2023-03-01T12:00:00", "dropoff_datetime": "2023-03-01T12:15:00.5"}


def decode(*values: Any) -> records.Decoded:
    """Decode objects, or bytes as they are."""
    return records.decode([v if isinstance(v, bytes) or v is None else json.dumps(v).encode() for v in values])


def test_three_fields_are_enough() -> None:
    """The smallest transaction gives three columns of float64 and nothing else."""
    decoded = decode(TRIP)
    assert {name: column.tolist() for name, column in decoded.columns.items()} == {n: [v] for n, v in TRIP.items()}
    assert {column.dtype for column in decoded.columns.values()} == {np.dtype("float64")}
    assert list(decoded.transaction_ids) == [""]
    assert decoded.rejected == {}


def test_two_times_stand_in_for_the_duration() -> None:
    """Times become datetime64[us]; the duration is left to the one place that derives it."""
    decoded = decode({"trip_distance": 2.5, "fare_amount": 12.5} | TIMES)
    assert decoded.columns["pickup_datetime"].dtype == np.dtype("datetime64[us]")
    assert decoded.columns["dropoff_datetime"][0] == np.datetime64("2023-03-01T12:15:00.500000")
    assert "duration_minutes" not in decoded.columns


@pytest.mark.parametrize(
    "odd",
    [
        {"trip_distance": 0, "fare_amount": 400, "duration_minutes": 0.2},
        {"fare_amount": -9},
        {"fare_amount": 1e300},
        {"trip_distance": 10**18},
        {"duration_minutes": -4},
        {"vendor_id": 99, "rate_code_id": -1, "pickup_location_id": 100000},
        {"passenger_count": 1.0},
        {"tip_amount": None, "passenger_count": None, "store_and_fwd_flag": None, "service": None},
        {"pickup_datetime": "2090-01-01T00:00:00", "dropoff_datetime": "1970-01-01T00:00:00"},
        {"medallion": "unknown fields are ignored"},
    ],
)
def test_a_strange_trip_is_data(odd: dict[str, Any]) -> None:
    """What is merely suspicious is decoded, not refused."""
    assert decode(TRIP | odd).rejected == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fare_amount": "12.5"}, "fare_amount"),
        ({"fare_amount": True}, "fare_amount"),
        ({"fare_amount": None}, "fare_amount"),
        ({"fare_amount": [1]}, "fare_amount"),
        ({"trip_distance": {"miles": 2}}, "trip_distance"),
        ({"duration_minutes": None}, "duration_minutes"),
        ({"duration_minutes": None, "pickup_datetime": TIMES["pickup_datetime"]}, "duration_minutes"),
        ({"passenger_count": 1.5}, "passenger_count"),
        ({"pickup_datetime": "yesterday"}, "pickup_datetime"),
        ({"pickup_datetime": "2023-02-30T00:00:00"}, "pickup_datetime"),
        ({"pickup_datetime": "2023-02-28"}, "pickup_datetime"),
        ({"pickup_datetime": "NaT"}, "pickup_datetime"),
        ({"pickup_datetime": "0000-01-01T00:00:00"}, "pickup_datetime"),
        ({"pickup_datetime": 1677672000}, "pickup_datetime"),
        ({"service": "fhv"}, "service"),
        ({"service": 1}, "service"),
        ({"store_and_fwd_flag": "N" * 65}, "store_and_fwd_flag"),
        ({"store_and_fwd_flag": 0}, "store_and_fwd_flag"),
        ({"transaction_id": ""}, "transaction_id"),
        ({"transaction_id": "a b"}, "transaction_id"),
        ({"transaction_id": "x" * 65}, "transaction_id"),
        ({"transaction_id": 7}, "transaction_id"),
        ({"fare": 12.5}, "fare_amount"),
    ],
)
def test_what_cannot_be_a_record_is_rejected(change: dict[str, Any], field: str) -> None:
    """The reason names the field and not the value; the neighbours are decoded all the same."""
    decoded = decode(TRIP, TRIP | change, TRIP | TIMES)
    assert list(decoded.rows) == [0, 2]
    assert list(decoded.rejected) == [1]
    assert decoded.rejected[1].startswith(f"{field}: ")
    assert "yesterday" not in decoded.rejected[1]
    assert {len(column) for column in decoded.columns.values()} == {2}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00not json",
        b'{"trip_distance": NaN, "fare_amount": 1, "duration_minutes": 1}',
        b'{"trip_distance": Infinity, "fare_amount": 1, "duration_minutes": 1}',
        b'{"trip_distance": 1e999, "fare_amount": 1, "duration_minutes": 1}',
        b'{"transaction_id": "\\ud800"}',
        b'{"transaction_id": "\xff"}',
        b"[" * 100_000,
        b"[1]",
        b'"text"',
        b"null",
        None,
    ],
)
def test_what_is_no_json_object_is_rejected(raw: bytes | None) -> None:
    """Poison of every kind costs one record, with a reason."""
    decoded = decode(TRIP, raw, TRIP)
    assert list(decoded.rows) == [0, 2]
    assert "expected" in decoded.rejected[1]


def test_no_message_can_pass_for_parts_of_two() -> None:
    """Two crafted halves that would be two records when glued together stay two broken messages."""
    first, second = json.dumps(TRIP) + ',{"a":[{}', "{}]}"
    assert set(decode(first.encode(), second.encode()).rejected) == {0, 1}


def test_every_spelling_is_known() -> None:
    """TLC names of both services, snake_case and squeezed ones land in the same columns."""
    green = {"lpep_pickup_datetime": TIMES["pickup_datetime"], "PULocationID": 74, "RatecodeID": 1, "VendorID": 2}
    yellow = {"tpepPickupDateTime": TIMES["pickup_datetime"], "pickup_location_id": 74, "rate_code_id": 1}
    decoded = decode(TRIP | green, TRIP | yellow)
    assert decoded.columns["pickup_location_id"].tolist() == [74, 74]
    assert decoded.columns["service"].tolist() == [0, 1]
    assert decoded.columns["vendor_id"].tolist()[0] == 2
    assert np.isnan(decoded.columns["vendor_id"][1])


def test_a_field_under_two_spellings_is_rejected() -> None:
    """Which of the two would count is not for this side to choose."""
    assert decode(TRIP | {"fare": 99}).rejected == {0: "fare_amount: given twice under two spellings"}


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("2023-03-01T17:00:00Z", "2023-03-01T12:00:00"),
        ("2023-07-01T12:00:00+02:00", "2023-07-01T06:00:00"),
        ("2023-03-01 12:00:00", "2023-03-01T12:00:00"),
        ("2023-03-01T12:00", "2023-03-01T12:00:00"),
        ("2023-03-01T12:00:00.25", "2023-03-01T12:00:00.250000"),
    ],
)
def test_times_become_local_and_plain(text: str, local: str) -> None:
    """An offset is converted to New York; the object then holds the plain form."""
    checked = records.check([TRIP | {"pickup_datetime": text}])
    assert checked.columns["pickup_datetime"][0] == np.datetime64(local)
    assert checked.objects[0]["pickup_datetime"] in (local, text)
    assert records.decode([orjson.dumps(checked.objects[0])]).columns["pickup_datetime"][0] == np.datetime64(local)


def test_identity_and_stamp_pass_through() -> None:
    """Identities and the time of acceptance come along; a stamp that is none does not."""
    stamp = "2026-11-24T07:00:00.123Z"
    decoded = decode(
        TRIP | {"transaction_id": "a", "accepted_at": stamp},
        TRIP | {"transaction_id": "b", "accepted_at": '"},{'},
        TRIP | {"accepted_at": 5},
    )
    assert list(decoded.transaction_ids) == ["a", "b", ""]
    assert list(decoded.accepted_at) == [stamp, None, None]


def test_a_key_given_twice_is_seen() -> None:
    """The parser keeps the last silently; text with quotes or nested objects raises no false alarm."""
    for raw, twice in (
        (b'{"a": 1, "a": 2}', True),
        (b'{"a": "x", "b": {"c": 1, "c": 2}}', True),
        (b'{"a": "say \\"a\\"", "b": {"a": 1}}', False),
        (b'{"a": "x", "b": 2}', False),
    ):
        assert records.has_duplicate_key(raw, orjson.loads(raw)) is twice


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53), st.none())
ANYTHING = st.one_of(NUMBERS, st.booleans(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
OBJECTS = st.dictionaries(
    st.sampled_from([c.name for c in COLUMNS] + ["PULocationID", "duration_minutes", "service", "colour"]),
    st.one_of(ANYTHING, st.sampled_from(["green", *TIMES.values(), "2023-03-01T12:00:00Z"])),
    max_size=6,
).map(lambda changes: TRIP | changes)


@settings(max_examples=40, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=8))
def test_a_batch_is_decoded_as_its_records_one_by_one(objects: list[dict[str, Any]]) -> None:
    """Whatever stands beside a record, its values and its verdict are the same."""
    together = decode(*objects)
    position = {row: place for place, row in enumerate(together.rows)}
    for row, value in enumerate(objects):
        alone = decode(value)
        assert alone.rejected.get(0) == together.rejected.get(row)
        if row in position:
            for name, column in alone.columns.items():
                np.testing.assert_array_equal(column[0], together.columns[name][position[row]])


@settings(max_examples=80, deadline=None)
@given(OBJECTS)
def test_the_documented_model_agrees(value: dict[str, Any]) -> None:
    """What /docs says about types is what the decoder does."""
    checked = records.check([dict(value)])
    assume("given twice" not in str(checked.faults))
    canonical = {name: item for name, item in checked.objects[0].items() if "datetime" not in name}
    mistyped = {
        name for name, fault in checked.faults.get(0, {}).items() if "found" in fault and "datetime" not in name
    }
    try:
        Transaction.model_validate_json(json.dumps(canonical))
    except ValidationError as err:
        seen = {str(e["loc"][0]) for e in err.errors()}
    else:
        seen = set()
    # JSON has one kind of number: 1.0 is whole to the decoder and to JSON Schema, not to this library.
    whole = {name for name, item in canonical.items() if isinstance(item, float) and item.is_integer()}
    assert seen - whole - {n for n in ("trip_distance", "fare_amount") if canonical[n] is None} == mistyped - whole
