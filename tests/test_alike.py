"""Batches of like records come out as the careful decoder has them, whatever byte of them is another."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.records import Records
from fraudlib.schema import COLUMNS
from fraudlib.wire import alike, columnar, records

BENCH = [value for _, value in Records()(1024, "b-")]
FULL: dict[str, Any] = {
    "transaction_id": "t-1",
    "pickup_datetime": "2023-03-01T12:00:00",
    "dropoff_datetime": "2023-03-01T12:15:00",
    "vendor_id": 2,
    "trip_distance": 2.5,
    "fare_amount": 12.5,
    "duration_minutes": 14.283333333333333,
    "store_and_fwd_flag": "N",
    "service": "green",
    "accepted_at": "2023-06-01T00:00:00.000Z",
}
LIKE = [orjson.dumps(FULL | {"transaction_id": f"t-{i}", "fare_amount": i / 4}) for i in range(64)]


def same(values: list[bytes | None]) -> records.Decoded | None:
    """Both decoders agree to the last column, or the one that needs likeness gives up."""
    fast, careful = alike.decode(values), records.decode(values)
    if fast is None:
        return None
    assert list(fast.rejected.items()) == list(careful.rejected.items())
    assert fast.rows == careful.rows
    assert list(fast.transaction_ids) == list(careful.transaction_ids)
    assert list(fast.accepted_at) == list(careful.accepted_at)
    assert fast.columns.keys() == careful.columns.keys()
    for name, column in careful.columns.items():
        assert fast.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(fast.columns[name], column, err_msg=name)
        if column.dtype == np.float64:
            np.testing.assert_array_equal(np.signbit(fast.columns[name]), np.signbit(column), err_msg=name)
    return fast


def among(raw: bytes | None, like: list[bytes] = LIKE) -> records.Decoded:
    """One record among many that are alike; it is at most one of them that needs a closer look."""
    decoded = same([*like[:40], raw, *like[40:]])
    assert decoded is not None
    return decoded


def changed(**fields: Any) -> bytes:
    """A record like the others but for some values; None for the value leaves a null."""
    return orjson.dumps(FULL | fields)


def with_text(name: str, text: str, **fields: Any) -> bytes:
    """A record like the others, with this JSON for the value of a field, and others as given."""
    mark = 987654321
    return orjson.dumps(FULL | fields | {name: mark}).replace(str(mark).encode(), text.encode())


@pytest.mark.parametrize("count", [64, 200, 1024])
def test_what_the_bench_sends_needs_no_careful_look(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Records of both shapes that it sends are decoded here to the last one."""
    values: list[bytes | None] = list(BENCH[:count])
    assert len({tuple(orjson.loads(value)) for value in BENCH[:count]}) == 2
    assert same(values) is not None
    monkeypatch.setattr(alike, "_FEW", 0)
    monkeypatch.setattr(alike, "_MOST_LEFT", 0)
    monkeypatch.setattr(records, "decode", None)
    monkeypatch.setattr(columnar, "FEWEST", 1)
    monkeypatch.setattr(columnar, "_clean", None)
    decoded = columnar.decode(values)
    assert (len(decoded.transaction_ids), decoded.rejected) == (count, {})
    assert type(decoded.transaction_ids) is list is type(decoded.accepted_at)


def test_a_good_field_does_not_clear_a_record_of_a_bad_one() -> None:
    """Where the numbers of two fields have to be parsed one by one, a record that is wrong in the first stays wrong."""
    long = {"vendor_id": None, "fare_amount": 12345678.9, "duration_minutes": 14.283333333333333}
    values: list[bytes | None] = [orjson.dumps(FULL | long | {"transaction_id": f"t-{i}"}) for i in range(64)]
    for place, field, text in ((20, "vendor_id", "nult"), (30, "fare_amount", "1234567x.9"), (40, "vendor_id", "1")):
        values[place] = with_text(field, text, **long)
    decoded = same(values)
    assert decoded is not None
    assert list(decoded.rejected) == [20, 30]


def test_a_byte_changed_anywhere_changes_what_it_changes() -> None:
    """Any byte of any record for any other byte: that record's value or verdict follows, and no other's."""
    choose = random.Random(5)
    whole = [*map(bytearray, BENCH[:32]), *map(bytearray, LIKE[:32])]
    likely = b'0123456789-.eE+"{}[]:,ntT \\\x00\x1f\x7f\x80\xff\n'
    for _ in range(300):
        values: list[bytes | None] = list(BENCH[:256])
        for place in choose.sample(range(256), 12):
            raw = bytearray(values[place] or b"")
            at = choose.randrange(len(raw))
            raw[at] = choose.choice(likely) if choose.random() < 0.7 else choose.randrange(256)
            values[place] = bytes(raw)
        assert same(values) is not None
    for _ in range(1500):
        raw = bytearray(choose.choice(whole))
        for _ in range(choose.choice((1, 1, 2))):
            at = choose.randrange(len(raw))
            match choose.randrange(3):
                case 0:
                    raw[at] = choose.choice(likely)
                case 1:
                    del raw[at]
                case _:
                    raw.insert(at, choose.choice(likely))
            among(bytes(raw))


NUMBERS = (
    "0 -0 -0.0 -0.5 -1 -12.5 -999999 0.1 0.000001 123456 1234567 12345678 1.23456 1.234567 9999999 99999999 "
    "14.283333333333333 -14.283333333333333 5e-324 1e-400 1e3 1E5 -1e-3 1E400 9007199254740993 18446744073709551615 "
    "18446744073709551616 123456789012345678901234567890 0.1000000000000000055511151231257 "
    "null true false 01 00 -01 00.5 1. -1. .5 -.5 . - -- --1 1-1 +1 1.2.3 1..2 1e 1e+ 0x10 NaN nan Infinity nullx nul "
    '"12.5" {} [] [1] [1,2] {"a":1} 1,2 1,"vendor_id":3 1} 1}{ 1]'
)


@pytest.mark.parametrize("name", ["fare_amount", "vendor_id", "duration_minutes", "tolls_amount"])
@pytest.mark.parametrize("text", [*NUMBERS.split(), "", " 1", "1 ", "1 2", "\t1", "1\n", "1" * 400, "0." + "1" * 400])
def test_numbers_are_the_same(name: str, text: str) -> None:
    """To the last bit, or refused by the same sentence; in one record and, twice among few texts, side by side."""
    like = LIKE if name in FULL else [with_text(name, str(i)) for i in range(64)]
    raw = with_text(name, text)
    among(raw, like)
    same([*like, raw, raw, *like])
    same([raw] * 64)


@pytest.mark.parametrize(
    ("left", "right"), [('"', '"'), ("[1", "2]"), ('{"a"', "1}"), ("1", "2,3"), ("[", "]"), ("1]", "[1")]
)
def test_halves_of_a_value_stay_broken(left: str, right: str) -> None:
    """Texts that would be values if they stood side by side are none in two records, whichever field they stand in."""
    for name in ("fare_amount", "duration_minutes"):
        long = [with_text(name, text + " " * 8) for text in (left, right)]
        for halves in (long, [with_text(name, left), with_text(name, right)]):
            decoded = same([*LIKE, *halves, *LIKE])
            assert decoded is not None
            assert decoded.rejected


TIMES = (
    "2023-02-29T00:00:00 2024-02-29T23:59:59 1900-02-29T00:00:00 2000-02-29T00:00:00 2023-04-31T00:00:00 "
    "2023-00-01T00:00:00 2023-13-01T00:00:00 2023-01-00T00:00:00 2023-01-32T00:00:00 2023-03-01T24:00:00 "
    "2023-03-01T23:60:00 2023-03-01T23:59:60 0000-03-01T12:00:00 0001-01-01T00:00:00 9999-12-31T23:59:59 "
    "2023-03-01T12:00:00Z 2023-03-01T12:00:00.5 2023-03-01T12:00:00.000001 2023-03-01T12:00:00+02:00 2023-03-01T12:00 "
    "2023-03-01 2023-03-01t12:00:00 2023/03/01T12:00:00 +023-03-01T12:00:00 2023-03-0:T12:00:00 20230301T120000 "
    "NaT soon"
)


@pytest.mark.parametrize(
    "text", [*TIMES.split(), "", "2023-03-01 12:00:00", "2023-03-01T12: 0:00", '2023-03-01T12:00"00']
)
def test_times_are_the_same(text: str) -> None:
    """Days that exist, in the years that there are; other forms are read as ever."""
    among(with_text("pickup_datetime", f'"{text}"'))
    among(with_text("dropoff_datetime", f'"{text}"'))


@pytest.mark.parametrize("year", ["0001", "1600", "1900", "1970", "2000", "2023", "2024", "2100", "9999"])
def test_every_day_of_a_year_is_the_same(year: str) -> None:
    """Those that do not exist are refused."""
    days = [f"{year}-{month:02}-{day:02}T23:59:58" for month in range(1, 13) for day in range(1, 29 + (month % 5))]
    assert same([changed(pickup_datetime=day) for day in days]) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"transaction_id": ""},
        {"transaction_id": "a b"},
        {"transaction_id": "x" * 64},
        {"transaction_id": "x" * 65},
        {"transaction_id": "x" * 200},
        {"transaction_id": "a/b"},
        {"transaction_id": "}{,:"},
        {"transaction_id": 7},
        {"transaction_id": None},
        {"transaction_id": "ä"},
        {"transaction_id": 'say "a"'},
        {"transaction_id": "a\nb"},
        {"service": "yellow"},
        {"service": "black"},
        {"service": "greenish"},
        {"service": "gree"},
        {"service": ""},
        {"service": None},
        {"service": 0},
        {"store_and_fwd_flag": None},
        {"store_and_fwd_flag": ""},
        {"store_and_fwd_flag": ',"fare_amount":1'},
        {"store_and_fwd_flag": "N" * 64},
        {"store_and_fwd_flag": "N" * 65},
        {"store_and_fwd_flag": 1},
        {"accepted_at": None},
        {"accepted_at": 5},
        {"accepted_at": "soon"},
        {"accepted_at": "2023-06-01T00:00:00Z"},
        {"accepted_at": "2023-06-01T00:00:00.123456Z"},
        {"accepted_at": "2023-06-01T00:00:00.0000"},
        {"accepted_at": "ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:"},
        {"accepted_at": "}" * 24},
        {"accepted_at": "2" * 500},
        {"pickup_datetime": None},
        {"pickup_datetime": 5},
        {"pickup_datetime": None, "duration_minutes": None},
        {"fare_amount": None},
        {"trip_distance": None},
        {"duration_minutes": None},
        {"vendor_id": None},
        {"vendor_id": 1.0},
        {"vendor_id": 1.5},
        {"vendor_id": -1.5},
        {"medallion": 1},
        {"PULocationID": 74},
        {"fare": 1},
    ],
)
def test_odd_values_are_the_same(fields: dict[str, Any]) -> None:
    """One odd record among many, and batches of nothing else."""
    raw = changed(**fields)
    among(raw)
    same([raw] * 64)
    same([raw, *LIKE])
    same([*LIKE[:32], *[raw] * 32])


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: None,
        lambda raw: b"",
        lambda raw: b"{}",
        lambda raw: b"null",
        lambda raw: b"[1]",
        lambda raw: b"[" + raw + b"]",
        lambda raw: raw[:-1],
        lambda raw: raw[1:],
        lambda raw: raw + raw,
        lambda raw: raw + b"\n" + raw,
        lambda raw: raw + b"}",
        lambda raw: raw + b" ",
        lambda raw: b" " + raw,
        lambda raw: raw + b"\x00",
        lambda raw: raw.replace(b",", b", "),
        lambda raw: raw.replace(b'","', b'"\t,"'),
        lambda raw: raw.replace(b",", b", ").replace(b":", b": "),
        lambda raw: raw.replace(b"trip_distance", b"fare_amount"),
        lambda raw: raw.replace(b'"fare_amount"', b'"fare_amounT"'),
        lambda raw: raw.replace(b'"fare_amount"', b'"\\u0066are_amount"'),
        lambda raw: raw.replace(b'"green"', b'"gr\\u0065en"'),
        lambda raw: raw.replace(b'"green"', b'"green'),
        lambda raw: raw.replace(b'"green"', b'"gr"een"'),
        lambda raw: raw.replace(b'"green"', b"green"),
        lambda raw: raw.replace(b'"N"', b'"\x01"'),
        lambda raw: raw.replace(b'"N"', b'"\x7f"'),
        lambda raw: raw.replace(b'"N"', b'"\xff"'),
        lambda raw: raw[:-1] + b',"fare_amount":13}',
        lambda raw: b'{"fare_amount":13,' + raw[1:],
        lambda raw: raw[:-1] + b',"vendor_id":1}',
        lambda raw: json.dumps(dict(reversed(orjson.loads(raw).items()))).encode(),
        lambda raw: orjson.dumps(dict(reversed(orjson.loads(raw).items()))),
        lambda raw: raw.replace(b"pickup_datetime", b"lpep_pickup_datetime"),
    ],
)
def test_odd_records_are_the_same(change: Callable[[bytes], bytes | None]) -> None:
    """Whatever is odd about one record, all get the verdict and the values that the careful decoder has."""
    raw = change(LIKE[7])
    among(raw)
    same([raw] * 64)
    same([raw, *LIKE])
    same([*LIKE, raw])
    same([*LIKE[:32], *[raw] * 32])


def test_equal_bytes_under_swapped_keys_are_not_mixed_up() -> None:
    """Two keys of the same length and kind, in another order, keep their values."""
    one = [
        b'{"trip_distance":1.5,"fare_amount":%d,"duration_minutes":3,"vendor_id":1,"trip_type":2}' % i
        for i in range(64)
    ]
    other = [
        raw.replace(b"vendor_id", b"@").replace(b"trip_type", b"vendor_id").replace(b"@", b"trip_type") for raw in one
    ]
    decoded = same([*one, *other])
    assert decoded is not None
    assert decoded.columns["vendor_id"].tolist() == [1] * 64 + [2] * 64


def test_a_few_more_shapes_are_no_hindrance() -> None:
    """Fields that some records lack or leave null are NaN, NaT or None there."""
    bare = {"trip_distance": 2, "fare_amount": 3, "duration_minutes": 4}
    kinds = [FULL, bare, FULL | {"service": None, "pickup_datetime": None}, FULL | {"transaction_id": None}]
    values: list[bytes | None] = [orjson.dumps(kinds[i % 4]) for i in range(256)]
    decoded = same(values)
    assert decoded is not None
    assert decoded.columns["service"][:3].tolist()[0] == 0
    assert np.isnat(decoded.columns["pickup_datetime"][1:3]).all()
    assert list(decoded.accepted_at[:2]) == [FULL["accepted_at"], None]


@pytest.mark.parametrize("weird", ["ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:ZZ:", "2023-06-01T00:00:00.000Z"])
@pytest.mark.parametrize("beside", [FULL["accepted_at"], "soon", "2023-06-01T00:00:00.123456Z", None, "Z" * 24])
@pytest.mark.parametrize("fare", ["1", "x"])
def test_stamps_are_looked_at_together(weird: str, beside: str | None, fare: str) -> None:
    """A stamp's verdict hangs on those beside it, also where these are rejected."""
    raw = with_text("fare_amount", fare).replace(FULL["accepted_at"].encode(), weird.encode())
    odd = orjson.dumps(FULL | {"accepted_at": beside, "fare_amount": None})
    for like in (FULL, FULL | {"accepted_at": beside}):
        same([*[orjson.dumps(like)] * 32, raw, *[orjson.dumps(like)] * 32])
        same([*[orjson.dumps(like)] * 32, raw, odd, *[orjson.dumps(like)] * 32])


def test_what_is_not_alike_is_left_to_others() -> None:
    """Records of many shapes, in the TLC's spelling or of no use, are not decoded here."""
    fields = list(FULL)
    shuffled = [random.Random(i).sample(fields, len(fields)) for i in range(64)]
    assert alike.decode([orjson.dumps({name: FULL[name] for name in names}) for names in shuffled]) is None
    assert alike.decode([changed(PULocationID=i) for i in range(64)]) is None
    assert alike.decode([b"{"] * 64) is None
    assert alike.decode([None] * 64) is None


def test_the_other_common_spacing_is_known() -> None:
    """What the standard library's encoder writes is decoded here, too."""
    assert same([json.dumps(FULL | {"fare_amount": i / 8}).encode() for i in range(64)]) is not None


NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**9), 10**9), st.integers(), st.none()
)
ANYTHING = st.one_of(NUMBER, st.text(max_size=4), st.booleans())
OBJECTS = st.dictionaries(
    st.sampled_from([c.name for c in COLUMNS] + ["PULocationID", "duration_minutes", "service", "transaction_id"]),
    st.one_of(ANYTHING, st.sampled_from(["green", "2023-03-01T12:00:00", "2023-03-01T12:00:00.5"])),
    max_size=3,
).map(lambda changes: FULL | changes)


@settings(max_examples=80, deadline=None)
@given(st.lists(OBJECTS, max_size=8), st.randoms(use_true_random=False), st.booleans())
def test_any_batch_is_the_same(objects: list[dict[str, Any]], choose: random.Random, spaced: bool) -> None:
    """Two decoders, one meaning."""
    encode: Callable[[Any], bytes] = (lambda value: json.dumps(value).encode()) if spaced else orjson.dumps
    values: list[bytes | None] = [*LIKE]
    try:
        values += map(encode, objects)
    except TypeError:  # a whole number that is none for orjson
        values += [json.dumps(value).encode() for value in objects]
    choose.shuffle(values)
    same(values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.from_regex(r"-?(0|[1-9][0-9]{0,7})(\.[0-9]{1,7})?", fullmatch=True), min_size=16, max_size=64))
def test_short_numbers_are_the_nearest_doubles(texts: list[str]) -> None:
    """Every number of few characters is rounded as the parser rounds it."""
    decoded = same([with_text("fare_amount", text) for text in texts])
    assert decoded is not None
    assert decoded.columns["fare_amount"].tolist() == [float(text) for text in texts]
