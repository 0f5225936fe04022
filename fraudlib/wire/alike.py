"""Batches of like records straight into columns: every byte compared or parsed by numpy, none by a JSON parser.

Nearly all records of a batch come from one encoder and have one of very few shapes: the same keys in the same order,
and only the values differ. One record tells a shape; then all records are walked along it at once. A record counts
only where each of its bytes is either a byte of the shape or part of a value that was found good; any other record is
left to `records.decode`, and so is the whole batch where these are not few.

Texts are looked at in words of eight bytes, the first character lowest, with many cells at a time in one array; numpy
lets other threads run meanwhile. The tricks with words need characters below 128, which is made sure first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from fraudlib.schema import BY_NAME, SERVICES, TIME_COLUMNS
from fraudlib.wire import records
from fraudlib.wire.records import ACCEPTED_AT, MOST_TEXT, NUMBERS, Decoded, plan_of

Kind = Literal["number", "time", "stamp", "text", "null"]
Words = NDArray[np.uint64]
Places = NDArray[np.int64]
Flags = NDArray[np.bool_]

MOST_BYTES: Final = 1 << 30
_MOST_MISSES: Final = 2  # records that may turn out to be like few others before a batch is given up
_FEW: Final = 64  # records that `records.decode` takes in no longer than a walk along one more shape
_MOST_LEFT: Final = 1 / 8  # share of a batch left to `records.decode` up to which all of this still pays
_BLOCK: Final = 1 << 14  # cells at a time: their words stay in a core's second cache
_BEYOND: Final = bytes(8192)  # a record that leaves its shape is walked on past its end, by less than this
_WORD: Final = 8
_BEFORE: Final = b" " * _WORD  # what is looked at begins up to a word early
_STAMP_LENGTH: Final = len("2023-06-01T00:00:00.000Z")
_STYLES: Final = ((b",", b":"), (b", ", b": "))  # of orjson, and of the standard library's json


def _word(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(text.encode(), "little"))


def _beyond(pattern: str) -> np.uint64:
    """What brings a byte's high bit up where it is, less the pattern's, no digit or not the mark."""
    return _word("".join(chr(0x80 - (10 if character == "0" else 1)) for character in pattern))


def _each(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


_ONE: Final = np.uint64(1)
_HIGH: Final = _each(0x80)
_ONES: Final = _each(0x01)
_LOW_BITS: Final = _each(0x7F)
_ZEROS: Final = _word("00000000")
_TO_HIGH: Final = _each(0x80 - 10)  # added to a byte, it reaches the high bit from 10 on: no digit
_MINUS: Final = np.uint64(ord("-") ^ ord("0"))
_DOTS: Final = _each(ord(".") ^ ord("0"))
_NULL: Final = _word("null")
_FOUR_BYTES: Final = np.uint64(0xFFFFFFFF)
_ALL: Final = _each(0xFF)
_BYTE: Final = np.uint64(0xFF)
_EIGHT: Final = np.uint64(8)
# Words of a time and of a stamp: digits where 0 stands, and the marks in their places.
_TIME_WORDS: Final = tuple(
    (at, _word(text), _beyond(text)) for at, text in ((0, "0000-00-"), (8, "00T00:00"), (11, "00:00:00"))
)
_STAMP_WORDS: Final = (*_TIME_WORDS[:2], (16, _word(":00.000Z"), _beyond(":00.000Z")))
_PAIRS: Final = np.uint64(0x000000FF000000FF)
_NUMBER_TYPES: Final = {int, float, type(None)}
# By the bits of the digits before the dot: what an eight-digit whole number with the dot after them is divided by.
_POWERS: Final = np.array([10.0 ** (8 - bits // 8) for bits in range(65)])


@dataclass(frozen=True)
class Stretch:
    """What lies between two values of unforeseen length, and the value behind it.

    Attributes
    ----------
    parts : dtype of an item that holds a stretch and the first word of the value: fields "NAME 0", "NAME 1", "NAME 2"
        are the words of times and stamps, and "words" are all of it.
    before : bytes of the item before the stretch, fewer than a word, so that the value begins with a word.
    width : bytes up to the value.
    literals : of words that hold bytes of the shape: which one, the bits to look at, and what they must be.
    fixed : names and places of the times and stamps in it.
    name : field of the value, "" behind the last one.
    kind : kind of the value.
    end : character right behind the value.
    """

    parts: np.dtype[Any]
    before: int
    width: int
    literals: tuple[tuple[int, np.uint64, np.uint64], ...]
    fixed: tuple[tuple[str, int], ...]
    name: str
    kind: Kind
    end: int


@dataclass(frozen=True)
class Shape:
    """Keys in their order, and of which kind the values are.

    Attributes
    ----------
    stretches : from the record's first byte to its last.
    numbers, times : fields that hold numbers, and those that hold times, in their order.
    nulls : fields but numbers that are null.
    has_free_stamp : whether it holds a stamp of another length than usual.
    """

    stretches: tuple[Stretch, ...]
    numbers: tuple[str, ...]
    times: tuple[str, ...]
    nulls: tuple[str, ...]
    has_free_stamp: bool


@dataclass
class Found:
    """What a shape's walk brought to light of m records.

    Attributes
    ----------
    rows : (m,) their places in the batch.
    good : (m,) whether a record follows the shape, and all its values are good.
    columns : field -> (m,) float64, or datetime64[us] for times.
    at : id or stamp -> (m,) places of its first character.
    lengths : id or stamp -> (m,) characters.
    """

    rows: Places
    good: Flags
    columns: dict[str, NDArray[Any]]
    at: dict[str, Places]
    lengths: dict[str, Places]


@dataclass
class Cells:
    """The texts of a shape's numbers, C fields of m records.

    Attributes
    ----------
    words : (C, m) first eight bytes.
    ends : (C, m) high bit of the byte behind the number up, and perhaps some further up; 0 where it is not among them.
    at : C times (m,) places of the first character.
    sizes : C times (m,) characters, and one for the end.
    """

    words: Words
    ends: Words
    at: list[Places]
    sizes: list[Places]


class Batch:
    """The messages' bytes, one after the other.

    Attributes
    ----------
    starts, stops : (n,) places of each message's first byte and of the one behind its last.
    good : (n,) whether a message is plain ASCII without escapes and control characters.
    """

    def __init__(self, values: Sequence[bytes | None]) -> None:
        try:
            self.raw = b"".join([_BEFORE, *values, _BEYOND])  # type: ignore[list-item]
        except TypeError:
            values = [value or b"" for value in values]
            self.raw = b"".join([_BEFORE, *values, _BEYOND])  # type: ignore[list-item]
        n = len(values)
        self.stops = len(_BEFORE) + np.cumsum(np.fromiter(map(len, values), np.int64, n))  # type: ignore[arg-type]
        self.starts = np.empty(n, np.int64)
        self.starts[0] = len(_BEFORE)
        self.starts[1:] = self.stops[:-1]
        self.good = np.ones(n, np.bool_)
        characters = np.frombuffer(self.raw, np.uint8, int(self.stops[-1]) - len(_BEFORE), len(_BEFORE))
        if b"\\" in self.raw or not self.raw.isascii() or characters.min(initial=0x20) < 0x20:
            # Below the space, 128 and above come out high.
            odd = np.flatnonzero((characters - np.uint8(0x20) >= 0x60) | (characters == ord("\\")))
            self.good[np.searchsorted(self.stops, odd + len(_BEFORE), side="right")] = False

    def take(self, kind: np.dtype[Any], at: Places) -> NDArray[Any]:
        """Items of any size, each from any byte on."""
        # Costs five nanoseconds an item, whether it has 8 bytes or 64.
        plain = np.dtype((np.void, kind.itemsize))
        items: NDArray[Any] = np.ndarray((len(self.raw) - plain.itemsize + 1,), plain, self.raw, strides=(1,))
        return items[at].view(kind)


_U64: Final = np.dtype("<u8")


def decode(values: Sequence[bytes | None]) -> Decoded | None:
    """Decode a batch of messages as `records.decode` does; None where too many of them are not plainly alike.

    Parameters
    ----------
    values : the messages' bytes, at least one.
    """
    batch = Batch(values)
    if len(batch.raw) > MOST_BYTES:
        return None
    n = len(values)
    merged = Found(np.arange(n), np.zeros(n, np.bool_), {}, {}, {})
    waiting = batch.good.copy()
    has_free_stamp = False
    misses = 0
    rest = np.flatnonzero(waiting)
    while len(rest) > min(_FEW, n * _MOST_LEFT):
        waiting[rest[0]] = False
        shape = _shape_of(values[rest[0]])
        found = None if shape is None else _walk(batch, rest, shape)
        explained = 0 if found is None else int(np.count_nonzero(found.good))
        if shape is not None and found is not None and explained:
            _merge(merged, found)
            waiting &= ~merged.good
            has_free_stamp |= shape.has_free_stamp
        misses += 8 * explained < len(rest)
        if misses > _MOST_MISSES:
            break
        rest = np.flatnonzero(waiting)
    return _finish(values, batch, merged, has_free_stamp)


def _shape_of(value: bytes | None) -> Shape | None:
    """The shape of a record, None where it is too odd for one.

    Nothing is taken on trust here: whether the record has that shape, its own walk shows.
    """
    try:
        trip = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    if type(trip) is not dict or not plan_of(tuple(trip)).is_canonical:
        return None
    kinds = tuple(_kind_of(name, item) for name, item in trip.items())
    return _make_shape(tuple(trip), kinds, b'": ' in (value or b""))


def _kind_of(name: str, item: Any) -> Kind | None:
    if name in NUMBERS:
        return "number"
    if item is None:
        return "null"
    if type(item) is not str:
        return None
    if name in TIME_COLUMNS:
        return "time"
    return "stamp" if name == ACCEPTED_AT and len(item) == _STAMP_LENGTH else "text"


@lru_cache(32)
def _make_shape(keys: tuple[str, ...], kinds: tuple[Kind | None, ...], is_spaced: bool) -> Shape | None:
    """The shape of such records, None where they cannot be good or hold a value of no kind."""
    known = dict(zip(keys, kinds, strict=True))
    times = tuple(name for name, kind in known.items() if kind == "time")
    numbers = tuple(name for name, kind in known.items() if kind == "number")
    if None in kinds or not set(records.MUST) <= set(numbers):
        return None
    if len(times) < len(TIME_COLUMNS) and "duration_minutes" not in numbers:
        return None
    comma, colon = _STYLES[is_spaced]
    literals: list[bytes] = []
    fields: list[tuple[str, Kind]] = []
    literal = b"{"
    for name, kind in known.items():
        literal += b'%b"%b"%b' % (comma if name != keys[0] else b"", name.encode(), colon)
        if kind == "null":
            literal += b"null"
        elif kind is not None:
            literals.append(literal if kind == "number" else literal + b'"')
            fields.append((name, kind))
            literal = b"" if kind == "number" else b'"'
    literals.append(literal + b"}")
    return Shape(
        _stretches(literals, fields),
        numbers,
        times,
        tuple(name for name, kind in known.items() if kind == "null"),
        known.get(ACCEPTED_AT) == "text",
    )


_LENGTHS: Final = {"time": 19, "stamp": _STAMP_LENGTH}
_FIXED: Final = {"time": _TIME_WORDS, "stamp": _STAMP_WORDS}


def _fixed_kind(name: str) -> str:
    return "time" if name in TIME_COLUMNS else "stamp"


def _stretches(literals: list[bytes], fields: list[tuple[str, Kind]]) -> tuple[Stretch, ...]:
    stretches: list[Stretch] = []
    pieces: list[bytes | str] = []
    for place, literal in enumerate(literals):
        # The character right behind a value of any length is found with the value.
        pieces.append(literal if not place or fields[place - 1][1] in _LENGTHS else literal[1:])
        name, kind = fields[place] if place < len(fields) else ("", "null")
        if kind in _LENGTHS:
            pieces.append(name)
        else:
            stretches.append(_stretch(pieces, name, kind, literals[place + 1][0] if name else 0))
            pieces = []
    return tuple(stretches)


def _stretch(pieces: list[bytes | str], name: str, kind: Kind, end: int) -> Stretch:
    """A stretch of literals and names of times and stamps."""
    width = sum(len(piece) if isinstance(piece, bytes) else _LENGTHS[_fixed_kind(piece)] for piece in pieces)
    at = before = -width % _WORD
    expected, looked_at = bytearray(before + width), bytearray(before + width)
    layout: dict[str, tuple[Any, int]] = {"words": (("<u8", ((before + width) // _WORD + 1,)), 0)}
    fixed: list[tuple[str, int]] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            expected[at : at + len(piece)] = piece
            looked_at[at : at + len(piece)] = b"\xff" * len(piece)
            at += len(piece)
        else:
            for number, (offset, *_) in enumerate(_FIXED[_fixed_kind(piece)]):
                layout[f"{piece} {number}"] = ("<u8", at + offset)
            fixed.append((piece, at - before))
            at += _LENGTHS[_fixed_kind(piece)]
    masks, wanted = np.frombuffer(looked_at, "<u8"), np.frombuffer(expected, "<u8")
    parts = np.dtype(
        {
            "names": list(layout),
            "formats": [form for form, _ in layout.values()],
            "offsets": [offset for _, offset in layout.values()],
            "itemsize": before + width + _WORD,
        }
    )
    literals = tuple((place, masks[place], wanted[place]) for place in np.flatnonzero(masks).tolist())
    return Stretch(parts, before, width, literals, tuple(fixed), name, kind, end)


def _walk(batch: Batch, rows: Places, shape: Shape) -> Found:
    """Follow a shape along the records, all at once, and parse their values."""
    m = len(rows)
    good = np.ones(m, np.bool_)
    columns: dict[str, NDArray[Any]] = {name: np.full(m, np.nan) for name in shape.nulls if name == "service"}
    columns |= {
        name: np.full(m, np.datetime64("NaT"), "datetime64[us]") for name in shape.nulls if name in TIME_COLUMNS
    }
    ats: dict[str, Places] = {}
    lengths: dict[str, Places] = {}
    count = len(shape.numbers)
    cells = Cells(np.empty((count, m), np.uint64), np.empty((count, m), np.uint64), [], [])
    moments: list[list[Words]] = []
    wrong = np.zeros(m, np.uint64)
    at = batch.starts[rows]
    for stretch in shape.stretches:
        parts = batch.take(stretch.parts, at - stretch.before)
        seen = parts["words"]
        for place, mask, wanted in stretch.literals:
            words = seen[:, place]
            good &= (words if mask == _ALL else words & mask) == wanted
        if 32 * np.count_nonzero(good) < 31 * m and good.any() and len(cells.at) < 4:
            return _walk(batch, rows[good], shape)
        for name, place in stretch.fixed:
            marks = _STAMP_WORDS if name == ACCEPTED_AT else _TIME_WORDS
            digits = [parts[f"{name} {number}"] ^ pattern for number, (_, pattern, _) in enumerate(marks)]
            for word, (_, _, beyond) in zip(digits, marks, strict=True):
                wrong |= word + beyond
            if name == ACCEPTED_AT:
                ats[name], lengths[name] = at + place, np.full(m, _STAMP_LENGTH)
            else:
                moments.append(digits)
        at += stretch.width
        if not stretch.name:
            break
        place = len(cells.at)
        word = cells.words[place] if stretch.kind == "number" else np.empty(m, np.uint64)
        word[:] = seen[:, -1]
        ends = cells.ends[place] if stretch.kind == "number" else np.empty(m, np.uint64)
        sizes = _find(word, stretch.end, ends)
        if not ends.all():
            _search(batch, at, stretch.end, ends, sizes, good)
        if stretch.kind == "number":
            cells.at.append(at.copy())
            cells.sizes.append(sizes)
        elif stretch.name == "service":
            columns["service"] = _services(word, ends, good)
        else:
            ats[stretch.name], lengths[stretch.name] = at.copy(), sizes - 1
            if stretch.name == "transaction_id":
                good &= sizes > 1
        at += sizes
    good &= at == batch.stops[rows]
    good &= wrong & _HIGH == 0
    if moments:
        columns |= zip(shape.times, _times(moments, good), strict=True)
    columns |= _numbers(batch, shape, cells, good)
    return Found(rows, good, columns, ats, lengths)


def _find(words: Words, end: int, ends: Words) -> Places:
    """Characters up to and with the end; 8 where it is in none of them. `ends` takes the bits, see `Cells`."""
    # A byte that equals the end becomes 0, and only that borrows from its high bit, or else one that stands above it.
    np.bitwise_xor(words, _each(end), out=ends)
    ends -= _ONES
    ends &= _HIGH
    up_to = ends - _ONE
    up_to ^= ends
    sizes: Places = (np.bitwise_count(up_to) >> 3).astype(np.int64)
    return sizes


def _search(batch: Batch, at: Places, end: int, ends: Words, sizes: Places, good: Flags) -> None:
    """Find the ends that lie beyond the first word; records with too long a value are not good."""
    left = np.flatnonzero((ends == 0) & good)
    for begun in range(_WORD, MOST_TEXT + 1, _WORD):
        if not len(left):
            break
        words = batch.take(_U64, at[left] + begun)
        further = np.empty_like(words)
        sizes[left] = begun + _find(words, end, further)
        left = left[further == 0]
    good[left] = False
    good &= sizes <= MOST_TEXT + 1


def _services(words: Words, ends: Words, good: Flags) -> NDArray[np.float64]:
    """Positions in SERVICES; a record with another name is not good."""
    names = words & ((ends ^ (ends - _ONE)) >> _EIGHT)
    known = ends != 0
    codes = np.full(len(words), np.nan)
    for code, name in enumerate(SERVICES):
        codes[names == _word(name)] = code
    good &= known & ~np.isnan(codes)
    return codes


@cache
def _months() -> NDArray[np.int64]:
    """Days from 1970 to the first day of each month, from January of the year 0 on."""
    return np.arange("0000-01", "10000-02", dtype="datetime64[M]").astype("datetime64[D]").view(np.int64)


def _times(moments: list[list[Words]], good: Flags) -> NDArray[np.datetime64]:
    """Times, (T, m), of the digits in words as in `_TIME_WORDS`; records with no such day or time are not good."""
    digits = np.array(moments)
    pairs = (digits * np.uint64(10) + (digits >> _EIGHT)).view(np.int64)
    dates, middles, lasts = pairs[:, 0], pairs[:, 1], pairs[:, 2]
    month = (dates >> 40) & 0xFF
    months = ((dates & 0xFF) * 100 + ((dates >> 16) & 0xFF)) * 12 + month - 1
    day, hour, minute, second = middles & 0xFF, (middles >> 24) & 0xFF, (middles >> 48) & 0xFF, (lasts >> 48) & 0xFF
    first = _months().take(months, mode="clip")
    valid = (month - 1).view(np.uint64) < np.uint64(12)
    valid &= (day > 0) & (day <= _months().take(months + 1, mode="clip") - first)
    valid &= (months >= 12) & (hour < 24) & (minute < 60) & (second < 60)
    good &= valid.all(axis=0)
    seconds = (((first + day - 1) * 24 + hour) * 60 + minute) * 60 + second
    times: NDArray[np.datetime64] = (seconds * 1_000_000).view("datetime64[us]")
    return times


def _numbers(batch: Batch, shape: Shape, cells: Cells, good: Flags) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers, NaN where null; records with a text that is no number for its field are not good."""
    count, m = cells.words.shape
    values = np.empty((count, m))
    odd = np.empty((count, m), np.bool_)
    step = max(1, _BLOCK // m)
    for start in range(0, count, step):
        block = slice(start, start + step)
        values[block], odd[block] = _short_numbers(cells.words[block], cells.ends[block])
    odd &= good
    columns = dict(zip(shape.numbers, values, strict=True))
    if odd.any():
        for place in np.flatnonzero(odd.any(axis=1)).tolist():
            rows = np.flatnonzero(odd[place])
            sizes = cells.sizes[place][rows]
            is_null = (cells.words[place][rows] & _FOUR_BYTES == _NULL) & (sizes == 5)
            values[place][rows[is_null]] = np.nan
            rows, sizes = rows[~is_null], sizes[~is_null]
            if len(rows):
                values[place][rows] = _odd_numbers(batch, cells.at[place][rows], sizes - 1, rows, good)
        for name in (*records.MUST, *(("duration_minutes",) if len(shape.times) < len(TIME_COLUMNS) else ())):
            good &= ~np.isnan(columns[name])
    whole = values[[name in BY_NAME and BY_NAME[name].kind == "integer" for name in shape.numbers]]
    broken = np.trunc(whole) != whole
    if broken.any():
        good &= ~(broken & ~np.isnan(whole)).any(axis=0)
    return columns


def _short_numbers(words: Words, ends: Words) -> tuple[NDArray[np.float64], Flags]:
    """Numbers of up to seven characters, minus, digits and a dot, and where the text is none such.

    Their digits make a whole number below 10**8, and the dot divides it by a power of ten up to 10**8. A double holds
    both exactly, so that the one division rounds as IEEE 754 demands: to the double nearest to the text's number, which
    is what a parser must give. See W. D. Clinger, How to Read Floating Point Numbers Accurately, PLDI 1990.
    """
    number = ends - _ONE
    number ^= ends
    number >>= _EIGHT
    digits = words ^ _ZEROS
    digits &= number
    negative = digits & _BYTE == _MINUS
    has_minus = negative.any()
    if has_minus:
        digits = np.where(negative, digits >> _EIGHT, digits)
        ends = np.where(negative, ends >> _EIGHT, ends)
    dots = digits ^ _DOTS
    dots += _LOW_BITS
    dots &= _HIGH
    dots ^= _HIGH
    whole = dots | ends
    whole ^= whole - _ONE
    whole >>= _EIGHT
    # The digits behind the dot move up to those before it. A second dot stays, and is no digit.
    moved = digits >> _EIGHT
    digits ^= moved
    digits &= whole
    digits ^= moved
    wrong = digits + _TO_HIGH
    wrong &= _HIGH
    dots <<= _EIGHT
    dots &= ends  # no digit behind the dot
    wrong |= dots
    odd = wrong != 0
    odd |= whole == 0  # none before it
    odd |= ends == 0
    # Eight digits, the first one lowest, become pairs, and those a number.
    moved = digits >> _EIGHT
    digits *= np.uint64(10)
    digits += moved
    moved = digits >> np.uint64(16)
    digits &= _PAIRS
    digits *= np.uint64(100 + (1000000 << 32))
    moved &= _PAIRS
    moved *= np.uint64(1 + (10000 << 32))
    digits += moved
    digits >>= np.uint64(32)
    odd |= (digits < np.uint64(10**7)) & (whole > _BYTE)  # a leading zero
    values = digits.view(np.int64).astype(np.float64)
    values /= _POWERS.take(np.bitwise_count(whole))
    if has_minus:
        odd |= negative & (digits == 0)
        np.negative(values, out=values, where=negative)
    return values, odd


def _odd_numbers(batch: Batch, at: Places, lengths: Places, rows: Places, good: Flags) -> NDArray[np.float64]:
    """Numbers of any length, NaN where null; records with another text are not good.

    The texts become one list. None can hold its own end, which is a comma or the record's end, so that as many numbers
    as texts means one for each.
    """
    width = int(lengths.max()) + 1
    texts = batch.take(np.dtype((np.void, width)), at).view(np.uint8).reshape(-1, width)
    texts[np.arange(width) >= lengths[:, None]] = ord(" ")
    texts[np.arange(len(at)), lengths] = ord(",")
    texts[-1, lengths[-1]] = ord("]")
    try:
        values = orjson.loads(b"[" + texts.tobytes())
    except orjson.JSONDecodeError:
        values = []
    if len(values) != len(at) or not set(map(type, values)) <= _NUMBER_TYPES:
        values = []
        for row, start, size in zip(rows.tolist(), at.tolist(), lengths.tolist(), strict=True):
            value = _parsed(batch.raw[start : start + size])
            is_number = type(value) in _NUMBER_TYPES
            good[row] &= is_number  # another of its fields may have been found wrong
            values.append(value if is_number else None)
    return np.array(values, dtype=np.float64)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""


def _merge(merged: Found, found: Found) -> None:
    """Put what was found in some of the records in their places in the batch."""
    n = len(merged.good)
    taken = found.rows[found.good]
    merged.good[taken] = True
    for name, column in found.columns.items():
        if name not in merged.columns:
            if len(found.good) == n:
                column[~found.good] = np.datetime64("NaT") if name in TIME_COLUMNS else np.nan
                merged.columns[name] = column
                continue
            merged.columns[name] = _nothing(name, n)
        merged.columns[name][taken] = column[found.good]
    for name, lengths in found.lengths.items():
        if name not in merged.lengths:
            merged.lengths[name], merged.at[name] = np.full(n, -1), np.zeros(n, np.int64)
        merged.lengths[name][taken] = lengths[found.good]
        merged.at[name][taken] = found.at[name][found.good]


def _nothing(name: str, n: int) -> NDArray[Any]:
    return np.full(n, np.datetime64("NaT"), "datetime64[us]") if name in TIME_COLUMNS else np.full(n, np.nan)


def _finish(values: Sequence[bytes | None], batch: Batch, merged: Found, has_free_stamp: bool) -> Decoded | None:
    """The decoded batch, what is left by `records.decode`; None where that is too much of it."""
    n = len(values)
    if n - np.count_nonzero(merged.good) > n * _MOST_LEFT:
        return None
    checked = records.Checked([])
    ids = list(records.ids(checked, _texts(batch, merged, "transaction_id")))
    merged.good[list(checked.faults)] = False
    stamps: Sequence[str | None] = _texts(batch, merged, ACCEPTED_AT)
    left = np.flatnonzero(~merged.good)
    if not len(left):
        return Decoded(merged.columns, ids, records.stamps(stamps) if has_free_stamp else stamps, range(n), {})
    if len(left) > n * _MOST_LEFT:
        return None
    if has_free_stamp:
        # A stamp that is none may pass in a batch of such; there, all must be looked at together.
        some = [stamps[row] for row in np.flatnonzero(merged.good).tolist()]
        if records.stamps([*some, None])[:-1] != some:
            return None
    careful = records.decode([values[row] for row in left.tolist()])
    added = left[careful.rows]
    for name, column in careful.columns.items():
        merged.columns.setdefault(name, _nothing(name, n))[added] = column
    new = dict(zip(added.tolist(), zip(careful.transaction_ids, careful.accepted_at, strict=True), strict=True))
    rejected = {int(left[place]): why for place, why in careful.rejected.items()}
    rows = [row for row in range(n) if row not in rejected]
    return Decoded(
        {name: column[rows] for name, column in merged.columns.items()} if rejected else merged.columns,
        [new[row][0] if row in new else ids[row] for row in rows],
        records.stamps([new[row][1] if row in new else stamps[row] for row in rows]),
        rows if rejected else range(n),
        rejected,
    )


def _texts(batch: Batch, merged: Found, name: str) -> list[str | None]:
    """Texts of all records, None where a record has none."""
    n = len(merged.good)
    if name not in merged.at:
        return [None] * n
    lengths = merged.lengths[name]
    has_all = lengths.min() >= 0
    rows = np.flatnonzero(lengths >= 0)
    at, lengths = (merged.at[name], lengths) if has_all else (merged.at[name][rows], lengths[rows])
    width = int(lengths.max()) + 1
    cut = batch.take(np.dtype((np.void, width)), at)
    if width > lengths.min() + 1:
        cut.view(np.uint8).reshape(-1, width)[np.arange(width) > lengths[:, None]] = 0
    # Each text brings its closing quote along, and holds none.
    texts = cut.tobytes().translate(None, b"\0").decode("ascii").split('"')[:-1]
    if has_all:
        return list(texts)
    every: list[str | None] = [None] * n
    for row, text in zip(rows.tolist(), texts, strict=True):
        every[row] = text
    return every
