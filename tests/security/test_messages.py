"""The decoder of messages against whatever a topic may hold: nothing breaks it, and every refusal says why."""

import json
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fraudlib import paths
from fraudlib.schema import BY_NAME, COLUMNS
from fraudlib.wire import alike
from fraudlib.wire.plain import plain
from fraudlib.wire.records import check, decode, is_id
from fraudlib.wire.transaction import FULL_EXAMPLE
from tests.security.damage import damaged

GOOD = (
    json.dumps(FULL_EXAMPLE).encode(),
    b'{"trip_distance":2.5,"fare_amount":12.5,"duration_minutes":15}',
    b'{"transaction_id":"a","accepted_at":"2026-01-01T00:00:00.000Z","trip_distance":1,"fare_amount":4,'
    b'"pickup_datetime":"2023-03-01T12:00:00","dropoff_datetime":"2023-03-01T12:30:00.000001","service":"yellow"}',
)
NAMES = sorted(
    {"transaction_id", "accepted_at", "duration_minutes", "service", "x", ""}
    | {alias for column in COLUMNS for alias in (column.name, *column.aliases)}
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=70),
    st.sampled_from(("2023-03-01T12:00:00", "2023-03-01T12:00:00Z", "0001-01-01T00:00:00+14:00", "green", "12.5")),
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
OBJECTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12)
MESSAGES = st.one_of(
    st.none(),
    st.binary(max_size=200),
    st.sampled_from(GOOD),
    st.sampled_from(GOOD).flatmap(damaged),
    OBJECTS.map(lambda value: json.dumps(value).encode()),
    OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    VALUES.map(lambda value: json.dumps(value).encode()),
)


@given(st.lists(MESSAGES, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_batch_is_parted_into_records_and_reasons(messages: list[bytes | None]) -> None:
    """Each message is one or the other, arrays fit, and what is taken is as the schema says."""
    decoded = decode(messages)
    assert sorted([*decoded.rows, *decoded.rejected]) == list(range(len(messages)))
    assert all(isinstance(why, str) and why for why in decoded.rejected.values())
    assert len(decoded.transaction_ids) == len(decoded.accepted_at) == len(decoded.rows)
    for name, array in decoded.columns.items():
        assert len(array) == len(decoded.rows)
        assert array.dtype == ("datetime64[us]" if name.endswith("datetime") else np.float64)
        if name in BY_NAME and BY_NAME[name].kind in ("integer", "float"):
            assert not np.isinf(array).any()
    assert all(name == "" or is_id(name) for name in decoded.transaction_ids)


@given(st.lists(MESSAGES, min_size=2, max_size=6))
@settings(deadline=None)
def test_no_message_changes_what_becomes_of_its_neighbours(messages: list[bytes | None]) -> None:
    """Alone or in a batch, a message is taken or refused for the same reason, with the same identity."""
    together = decode(messages)
    for row, message in enumerate(messages):
        alone = decode([message])
        assert together.rejected.get(row) == alone.rejected.get(0)
        if not alone.rejected:
            place = list(together.rows).index(row)
            assert together.transaction_ids[place] == alone.transaction_ids[0]
            for name, array in alone.columns.items():
                assert np.array_equal(array, together.columns[name][place : place + 1], equal_nan=True)


@given(OBJECTS | st.sampled_from(GOOD).flatmap(damaged))
@settings(deadline=None)
def test_what_the_api_accepts_the_worker_reads(given_: dict[str, object] | bytes) -> None:
    """The quick check of a single transaction takes nothing that the decoder refuses, and changes nothing."""
    try:
        value = orjson.loads(given_ if isinstance(given_, bytes) else json.dumps(given_).encode())
    except orjson.JSONDecodeError:
        return
    if not isinstance(value, dict) or (taken := plain(dict(value))) is None:
        return
    checked = check([dict(value)])
    assert checked.faults == {}
    assert taken == (checked.objects[0], checked.ignored.get(0, ()))
    assert decode([orjson.dumps(taken[0])]).rejected == {}


@given(st.text(min_size=6, max_size=30).map(lambda text: f"canary{text}"), st.sampled_from(NAMES))
@settings(deadline=None)
def test_a_reason_does_not_repeat_the_value(text: str, name: str) -> None:
    """Reasons go into headers and logs, where no value belongs."""
    for value in (text, [text], {text: text}):
        for why in decode([json.dumps({name: value, "fare_amount": text}).encode("utf-8")]).rejected.values():
            assert "canary" not in why


def test_a_time_that_is_none_is_refused_alone_and_among_good_ones() -> None:
    """Marks in other places make no time, though numpy reads one with a zone out of it."""
    good = GOOD[2]
    for wrong in (b"2023-03-01T12000:00", b"2023-03-01T12:0000:", b"2023-0301-T12:00:00"):
        bad = good.replace(b"2023-03-01T12:00:00", wrong)
        for batch in ([bad], [good, bad, good]):
            assert list(decode(batch).rejected) == [batch.index(bad)]


MEBIBYTE = 1 << 20
HOSTILE = {
    "lists in lists": b"[" * MEBIBYTE,
    "objects in objects": b'{"a":' * (MEBIBYTE // 5),
    "closed lists in lists": b"[" * 500 + b"]" * 500,
    "many lists": b"[" + b"[]," * (MEBIBYTE // 3) + b"[]]",
    "many keys": b"{" + b",".join(b'"k%d":1' % i for i in range(MEBIBYTE // 12)) + b"}",
    "many objects": b"[" + b'{"a":1},' * (MEBIBYTE // 8) + b"{}]",
    "a long number": b'{"fare_amount":' + b"9" * MEBIBYTE + b"}",
    "a long fraction": b'{"fare_amount":0.' + b"1" * MEBIBYTE + b"}",
    "a long text": b'{"transaction_id":"' + b"a" * MEBIBYTE + b'"}',
    "many escapes": b'{"transaction_id":"' + b"\\u0061" * (MEBIBYTE // 6) + b'"}',
    "a long time": b'{"pickup_datetime":"' + b"2" * MEBIBYTE + b'"}',
    "a key of a mebibyte": b'{"' + b"k" * MEBIBYTE + b'":1}',
    "the same key often": b"{" + b'"fare_amount":1,' * (MEBIBYTE // 16) + b'"fare_amount":1}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_costs_little(name: str) -> None:
    """A mebibyte made to hurt is refused in less than a second of CPU and forty times its size of memory."""
    message = HOSTILE[name]
    took = []
    for _ in range(3):  # the least: what other tests left to collect is not the message's cost
        started = time.process_time()
        decoded = decode([message, GOOD[0]])
        took.append(time.process_time() - started)
    assert min(took) < 1.0
    tracemalloc.start()
    try:
        decode([message])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * max(len(message), MEBIBYTE)
    assert decoded.rejected.keys() == {0}
    assert len(decoded.rejected[0]) < 500


ODD = (0, -0.0, 1, 2.5, -7.25, 1e-7, 1e22, 12345678.9, 14.283333333333333, 10**18)
LIKELY = b'0123456789-.eE+"{}[]:,ntT \\\x00\x1f\x7f\x80\xff\n'


def odd_object(choose: random.Random) -> bytes:
    """A record that may lack fields, or hold what is no usual value of one."""
    trip: dict[str, Any] = {"transaction_id": "t-1", "store_and_fwd_flag": "N", "service": "green", "vendor_id": 2}
    trip |= dict.fromkeys(("pickup_datetime", "dropoff_datetime"), "2023-03-01T12:00:00")
    trip |= {name: choose.choice(ODD) for name in ("trip_distance", "fare_amount", "duration_minutes", "airport_fee")}
    trip |= {"accepted_at": "2023-06-01T00:00:00.000Z"}
    texts = ("", "x" * choose.randint(1, 70), "a,b", "a:b}", "é", "a\nb", "2023-02-29T24:60:00", "yellow")
    for name in choose.sample(sorted(trip), choose.choice((0, 0, 0, 1, 2))):
        trip[name] = choose.choice((*ODD, None, None, True, [1], *texts))
    names = [name for name in trip if choose.random() > 0.02]
    if choose.random() < 0.2:
        choose.shuffle(names)
    kept = {name: trip[name] for name in names}
    return orjson.dumps(kept) if choose.random() < 0.7 else json.dumps(kept).encode()


def battered(raw: bytes, choose: random.Random) -> bytes:
    """A message with bytes changed, cut out, put in, or a piece of it in another place."""
    message = bytearray(raw)
    for _ in range(choose.choice((1, 1, 2, 5))):
        at, to = choose.randrange(len(message) + 1), choose.randrange(len(message) + 1)
        match choose.randrange(4):
            case 0:
                message[at : at + 1] = bytes([choose.choice(LIKELY)])
            case 1:
                del message[at : at + choose.choice((1, 1, 3, 30))]
            case 2:
                message.insert(at, choose.choice((choose.choice(LIKELY), choose.randrange(256))))
            case _:
                message[at:at] = message[to : to + choose.randint(1, 40)]
    return bytes(message)


def batter(seed: int, batches: int) -> int:
    """Decode batches of few shapes with battered records among them; how many were taken for records that are alike."""
    choose, taken = random.Random(seed), 0

    def perhaps_battered(raw: bytes, share: float) -> bytes | None:
        if choose.random() > share:
            return raw
        return battered(raw, choose) if choose.random() < 0.8 else choose.choice((None, b""))

    for _ in range(batches):
        kinds = [odd_object(choose) for _ in range(choose.choice((1, 2, 5)))]
        share = choose.choice((0.02, 0.05, 0.1))
        values = [perhaps_battered(kind, share) for kind in choose.choices(kinds, k=choose.choice((64, 200)))]
        decoded = alike.decode(values)
        if decoded is None:
            continue
        taken += 1
        careful = decode(values)
        assert decoded.rejected == careful.rejected
        assert list(decoded.rows) == list(careful.rows)
        assert list(decoded.transaction_ids) == list(careful.transaction_ids)
        assert list(decoded.accepted_at) == list(careful.accepted_at)
        assert decoded.columns.keys() == careful.columns.keys()
        for name, column in careful.columns.items():
            assert decoded.columns[name].dtype == column.dtype
            np.testing.assert_array_equal(decoded.columns[name], column, err_msg=name)
    return taken


def test_battered_batches_come_out_as_the_careful_decoder_has_them() -> None:
    """Whatever is done to some records of a batch, all of it is accepted or rejected as the slow way does it."""
    assert batter(3, 600) > 150


@pytest.mark.fuzz
def test_many_more_battered_batches_do() -> None:
    """New ones each time; the seed is in the failure."""
    for _ in range(40):
        assert batter(random.SystemRandom().randrange(10**9), 500) > 150


@pytest.mark.fuzz
def test_atheris_finds_nothing(tmp_path: Path) -> None:
    """Inputs that reach new code of the decoders, for two minutes from good messages and the fields' names on."""
    pytest.importorskip("atheris", reason="atheris is not installed; pip install -e '.[audit]' brings it on Linux")
    seeds, words = tmp_path / "seeds", tmp_path / "words"
    seeds.mkdir()
    for number, message in enumerate((*GOOD, b"\n".join(GOOD))):
        (seeds / str(number)).write_bytes(message)
    words.write_text("".join(f'"\\"{name}\\":"\n' for name in NAMES if name))
    command = [
        sys.executable,
        "-m",
        "tests.security.fuzz_records",
        str(seeds),
        f"-dict={words}",
        "-max_total_time=120",
        "-max_len=4096",
        "-rss_limit_mb=2048",
    ]
    result = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=False)
    print(result.stderr[-2000:])
    assert result.returncode == 0, result.stderr[-4000:]
