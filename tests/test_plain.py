"""The shortcut for plain transactions: whatever it lets pass, the full check would have passed unchanged."""

import copy
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fraudlib.wire.plain import decode_few, plain
from fraudlib.wire.records import check, decode
from fraudlib.wire.transaction import EXAMPLE, FULL_EXAMPLE

NAMES = [*FULL_EXAMPLE, "duration_minutes", "pickup_datetime", "dropoff_datetime", "passenger_count", "accepted_at"]
NAMES += ["tpep_pickup_datetime", "store_and_fwd_flag", "service", "vendor_id", "colour"]
TIMES = st.from_regex(
    r"(20|00|99)\d\d-[01]\d-[0-3]\d[T ][012]\d:[0-6]\d(:[0-6]\d(\.\d{1,6})?)?(Z|\+05:00)?", fullmatch=True
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=70),
    st.sampled_from(
        ["green", "yellow", "a.b:c-1", "2023-03-01T12:00:00", "2023-02-30T12:00:00", "2023-03-01T24:00:00"]
    ),
    TIMES,
    st.lists(st.integers(0, 9), max_size=2),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8), st.sampled_from([{}, EXAMPLE, FULL_EXAMPLE]))
def test_what_is_plain_passes_the_full_check_unchanged(some: dict[str, Any], base: dict[str, Any]) -> None:
    """The same trip under the same names, the same unknown fields, and no fault."""
    value = base | some
    found = plain(copy.deepcopy(value))
    checked = check([value])
    if found is not None:
        assert checked.faults == {}
        assert found == (checked.objects[0], checked.ignored.get(0, ()))


@pytest.mark.parametrize(
    "value",
    [
        EXAMPLE,
        FULL_EXAMPLE,
        EXAMPLE | {"tip_amount": None, "service": "yellow", "RatecodeID": 5.0, "colour": [1]},
        {
            "fare": -3,
            "trip_distance": 0,
            "lpep_pickup_datetime": "2023-03-01T12:00:00",
            "dropoff_datetime": "2023-03-01T12:15:00.000001",
        },
    ],
)
def test_the_usual_needs_no_more(value: dict[str, Any]) -> None:
    """Three fields, full records, the TLC's spelling and unknown fields are plain."""
    assert plain(dict(value)) is not None


RECORDS = st.builds(
    lambda some, base: base | some,
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    st.sampled_from([EXAMPLE, FULL_EXAMPLE]),
)


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_a_few_are_decoded_as_many_are(records: list[dict[str, Any]]) -> None:
    """The same columns of the same types, identities and times; or the full check has to look at them."""
    values: list[bytes | None] = [orjson.dumps(record) for record in records]
    few, full = decode_few(values), decode(values)
    if few is None:
        return
    assert full.rejected == {} == few.rejected
    assert list(few.rows) == list(full.rows)
    assert list(few.transaction_ids) == list(full.transaction_ids)
    assert list(few.accepted_at) == list(full.accepted_at)
    assert few.columns.keys() == full.columns.keys()
    for name, column in full.columns.items():
        assert few.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(few.columns[name], column)


@pytest.mark.parametrize("value", [None, b"", b"{", b"[1]", b"{}", b'{"trip_distance": "far"}', b"\xff"])
def test_what_is_not_plain_is_left_to_the_full_check(value: bytes | None) -> None:
    """One bad message among plain ones, and none of them is decoded here; plain ones alone are."""
    good = orjson.dumps(FULL_EXAMPLE)
    assert decode_few([good, value]) is None
    assert decode_few([good, good]) is not None
