"""Clean batches of transactions straight into columns, without a Python object for each value.

Records that are alike are compared and parsed by numpy, other clean ones by Arrow, and both let other threads run
meanwhile. Whatever is not plainly right goes to `records.decode`, which finds out what is wrong with which record; so
all of them give the same for every batch.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from fraudlib.schema import BY_NAME, SERVICES, TIME_COLUMNS
from fraudlib.wire import alike, records
from fraudlib.wire.plain import decode_few
from fraudlib.wire.records import ACCEPTED_AT, NUMBERS, TEXTS, Checked, Decoded

FEWEST: Final = 512  # records from which on Arrow costs no more, and numpy less
FEW: Final = 16  # records up to which one after the other costs less than arrays
MOST_BYTES: Final = 1 << 30
_STRINGS: Final = ("transaction_id", ACCEPTED_AT, "service", *TEXTS, *TIME_COLUMNS)
_SCHEMA: Final = pa.schema([(name, pa.string()) for name in _STRINGS] + [(name, pa.float64()) for name in NUMBERS])
_PARSE: Final = pj.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error")
# Made of bytes: pa.scalar would import pandas, as to_numpy does.
_SERVICES: Final = pa.array(SERVICES, pa.string())
_MICROSECONDS: Final = pa.timestamp("us")
_TIME_LENGTH: Final = len("2023-03-01T12:00:00")
_TIME_MARKED: Final = [4, 7, 10, 13, 16]
_TIME_MARKS: Final = np.frombuffer(b"--T::", np.uint8)
_FIRST_TIME: Final = np.datetime64("0001-01-01", "us")
_NAT: Final = np.array(["NaT"], "datetime64[us]").view(np.int64)
_NO_TIME: Final = pa.Array.from_buffers(pa.int64(), 1, [None, pa.py_buffer(_NAT)])[0]
_NAN: Final = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.array([np.nan]))])[0]


def decode(values: Sequence[bytes | None]) -> Decoded:
    """Decode a batch of messages; see `fraudlib.wire.records.decode`."""
    decoded = None
    if len(values) >= FEWEST:
        decoded = alike.decode(values) or _clean(values)
    elif 0 < len(values) <= FEW:
        decoded = decode_few(values)
    return records.decode(values) if decoded is None else decoded


def _clean(values: Sequence[bytes | None]) -> Decoded | None:
    """The decoded batch; None where any record is not plainly right."""
    table = _parse(values)
    if table is None:
        return None
    n = len(values)
    checked = Checked([{}] * n)
    given = {name: table.column(name) for name in table.column_names if table.column(name).null_count < n}
    for name in NUMBERS:
        if name in given:
            checked.columns[name] = _numbers(given[name])
    if not _are_plain(checked):
        return None
    for name in TIME_COLUMNS:
        if name in given:
            times = _times(given[name])
            checked.columns[name] = records.times(checked, name, given[name].to_pylist()) if times is None else times
    if "service" in given:
        if (services := _services(given["service"])) is None:
            return None
        checked.columns["service"] = services
    if any(name in given and pc.max(pc.binary_length(given[name])).as_py() > records.MOST_TEXT for name in TEXTS):
        return None
    nothing = (None,) * n
    ids = records.ids(checked, given["transaction_id"].to_pylist() if "transaction_id" in given else nothing)
    stamps = records.stamps(given[ACCEPTED_AT].to_pylist() if ACCEPTED_AT in given else nothing)
    records.require(checked, n)
    return None if checked.faults else Decoded(checked.columns, ids, stamps, range(n), {})


def _parse(values: Sequence[bytes | None]) -> "pa.Table | None":
    """One row for each message, or None.

    Each message is one line that begins with { and ends with }. No text can hold a line's end, and }, line's end, { can
    only stand between two whole objects; so no message can pass for parts of two, and as many rows as messages means
    one for each.
    """
    n = len(values)
    try:
        joined = b"\n".join(values)  # type: ignore[arg-type]
    except TypeError:
        return None
    if not joined.startswith(b"{") or not joined.endswith(b"}") or len(joined) > MOST_BYTES:
        return None
    characters = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))  # three times as fast as to count them in bytes
    if len(ends) != n - 1 or np.any(characters[ends - 1] != ord("}")) or np.any(characters[ends + 1] != ord("{")):
        return None
    # A zero byte ends the text for Arrow's parser; escapes and other scripts are rare enough to be looked at closely.
    if not joined.isascii() or b"\\" in joined or b"\x00" in joined:
        return None
    options = pj.ReadOptions(use_threads=False, block_size=len(joined) + 1)
    try:
        table = pj.read_json(pa.BufferReader(joined), read_options=options, parse_options=_PARSE)
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == n else None


def _numbers(column: "pa.ChunkedArray") -> NDArray[np.float64]:
    """Values of a column, NaN where null, read-only.

    Arrow's own to_numpy imports pandas at its first call, which held a running worker up for a second or more, and cost
    it 50 MiB, as soon as a batch was large enough to come here.
    """
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return np.asarray(np.from_dlpack(chunk.fill_null(_NAN) if chunk.null_count else chunk), dtype=np.float64)


def _times(column: "pa.ChunkedArray") -> NDArray[np.datetime64] | None:
    """Times of a column, NaT where null; None where any is not YYYY-MM-DDThh:mm:ss of a day and time that exist."""
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    offsets, texts = chunk.buffers()[1:]
    bounds = np.frombuffer(offsets, np.int32, len(chunk) + 1, 4 * chunk.offset)
    count = len(chunk) - chunk.null_count
    # Nulls have no characters, so the texts stand side by side.
    if np.count_nonzero(np.diff(bounds) == _TIME_LENGTH) != count or bounds[-1] - bounds[0] != _TIME_LENGTH * count:
        return None
    at = np.frombuffer(texts, np.uint8, _TIME_LENGTH * count, int(bounds[0])).reshape(count, _TIME_LENGTH)
    if np.any(at[:, _TIME_MARKED] != _TIME_MARKS):
        return None
    try:
        moments = chunk.cast(_MICROSECONDS).view(pa.int64())
    except pa.ArrowInvalid:
        return None
    times = np.from_dlpack(moments.fill_null(_NO_TIME) if moments.null_count else moments).view("datetime64[us]")
    return None if count and np.nanmin(times) < _FIRST_TIME else times


def _services(column: "pa.ChunkedArray") -> NDArray[np.float64] | None:
    """Positions in SERVICES, NaN where null; None where any is no service."""
    places = pc.index_in(column, value_set=_SERVICES)
    return None if places.null_count > column.null_count else _numbers(places.cast(pa.float64()))


def _are_plain(checked: Checked) -> bool:
    """Whether all numbers are finite, and those of codes whole."""
    for name, column in checked.columns.items():
        if np.isinf(column).any():
            return False
        if (
            name in BY_NAME
            and BY_NAME[name].kind == "integer"
            and np.any(np.trunc(column) != column, where=~np.isnan(column))
        ):
            return False
    return True
