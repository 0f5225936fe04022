"""The decoder of messages under atheris, which keeps the inputs that reach new code.

Run as `python -m tests.security.fuzz_records`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["fraudlib.wire.records", "fraudlib.wire.plain", "fraudlib.schema"]):
    from fraudlib.wire.records import decode


def decode_one(data: bytes) -> None:
    """Decode lines as one batch; each is a record or has a reason."""
    messages = data.split(b"\n")
    decoded = decode(messages)
    assert len(decoded.rows) + len(decoded.rejected) == len(messages)
    assert all(decoded.rejected.values())


if __name__ == "__main__":
    atheris.Setup(sys.argv, decode_one)
    atheris.Fuzz()
