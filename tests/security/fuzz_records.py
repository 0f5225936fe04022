"""The decoders of messages under atheris, which keeps the inputs that reach new code.

Run as `python -m tests.security.fuzz_records FOLDER`: of inputs to begin with.
"""

import sys

import atheris

with atheris.instrument_imports(include=["fraudlib.wire.records", "fraudlib.wire.plain", "fraudlib.schema"]):
    from fraudlib.wire.plain import decode_few
    from fraudlib.wire.records import decode

import numpy as np


def decode_one(data: bytes) -> None:
    """Decode lines as one batch; each is a record or has a reason, and the quick way gives what the other gives."""
    messages = data.split(b"\n")
    decoded = decode(messages)
    assert len(decoded.rows) + len(decoded.rejected) == len(messages)
    assert all(decoded.rejected.values())
    few = decode_few(messages)
    if few is None:
        return
    assert decoded.rejected == {}
    assert list(few.transaction_ids) == list(decoded.transaction_ids)
    assert list(few.accepted_at) == list(decoded.accepted_at)
    for name in decoded.columns.keys() | few.columns.keys():
        # A field that is null everywhere may be left out by either.
        one, other = (of.columns.get(name) for of in (few, decoded))
        if one is None or other is None:
            there = other if one is None else one
            assert np.isnat(there).all() if there.dtype.kind == "M" else np.isnan(there).all()
        else:
            assert one.dtype == other.dtype
            assert np.array_equal(one, other, equal_nan=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, decode_one)
    atheris.Fuzz()
