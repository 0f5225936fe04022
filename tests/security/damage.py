"""How hypothesis damages bytes that were good: bits flipped, parts cut, doubled, moved, and replaced."""

from hypothesis import strategies as st

SPICE = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"null",
    b"\\ud800",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x00",
    b'"',
    b"\\",
    b"{" * 40,
    b"[" * 3000,
    b"}",
    b",,",
    b"\r\n",
    b'"__proto__":',
    b"\x80\x04c__builtin__\nexec\n",
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 4) -> bytes:
    """The bytes after one to `most` damages."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        size = len(data)
        at = draw(st.integers(0, max(size - 1, 0)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("flip", "set", "cut", "end", "double", "move", "spice", "noise")))
        if kind == "flip" and size:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and size:
            data[at] = draw(st.sampled_from((0, 1, 34, 44, 45, 48, 92, 123, 125, 127, 128, 255)))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "move":
            part = bytes(data[at : at + length])
            del data[at : at + length]
            to = draw(st.integers(0, len(data)))
            data[to:to] = part
        elif kind == "spice":
            data[at:at] = draw(st.sampled_from(SPICE))
        elif kind == "noise":
            data[at : at + length] = draw(st.binary(max_size=length))
    return bytes(data)
