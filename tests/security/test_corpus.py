"""Requests that no honest client sends, over raw sockets: each is refused in the same form, and harms nobody."""

import contextlib
import gzip
import json
import socket
from typing import Final

import pytest

from fraudlib.demo.stack import Stack

TRIP: Final = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
JSON: Final = "Content-Type: application/json"
NDJSON: Final = "Content-Type: application/x-ndjson"
CANARY: Final = b"canary"


def post(body: bytes, *headers: str, path: str = "/transaction", length: int | str | None = None) -> bytes:
    """Bytes of a POST; JSON where no headers are given."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *(headers or (JSON,))]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def raw(*lines: str, body: bytes = b"") -> bytes:
    """Bytes of a request, line by line."""
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def trip(field: bytes, value: bytes) -> bytes:
    """A trip with one field more."""
    return TRIP[:-1] + b', "' + field + b'": ' + value + b"}"


def fare(value: bytes) -> bytes:
    """A trip with another fare."""
    return TRIP.replace(b"12.5", value)


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks, whole."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


CHUNKED: Final = ("POST /transaction HTTP/1.1", "Host: x", JSON, "Transfer-Encoding: chunked")
GET: Final = ("GET /healthz HTTP/1.1", "Host: x")

BODIES: Final = {
    "NaN": (fare(b"NaN"), 400),
    "Infinity": (fare(b"Infinity"), 400),
    "minus Infinity": (fare(b"-Infinity"), 400),
    "1e999": (fare(b"1e999"), 400),
    "an integer of 400 digits": (fare(b"9" * 400), 400),
    "an integer of 5000 digits": (fare(b"9" * 5000), 400),
    "a leading zero": (fare(b"012"), 400),
    "a leading plus": (fare(b"+1"), 400),
    "hexadecimal": (fare(b"0x10"), 400),
    "a number as text": (fare(b'"12.5"'), 422),
    "a boolean as a number": (fare(b"true"), 422),
    "null where a number is needed": (fare(b"null"), 422),
    "a list as a number": (fare(b"[1]"), 422),
    "an object as a number": (fare(b'{"canary": 1}'), 422),
    "a fraction where a whole number is needed": (trip(b"passenger_count", b"1.5"), 422),
    "a field twice": (trip(b"fare_amount", b"13"), 400),
    "a field twice, once escaped": (trip(b"f\\u0061re_amount", b"13"), 400),
    "a field under two spellings": (trip(b"vendor_id", b"1").replace(b"}", b', "VendorID": 2}'), 422),
    "lists in lists": (b"[" * 60_000, 400),
    "objects in objects": (b'{"a":' * 12_000, 400),
    "UTF-16": (TRIP.decode().encode("utf-16"), 400),
    "UTF-16 without a mark": (TRIP.decode().encode("utf-16-be"), 400),
    "UTF-32": (TRIP.decode().encode("utf-32"), 400),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + TRIP, 400),
    "Latin-1": (trip(b"note", '"canaryé"'.encode("latin-1")), 400),
    "overlong UTF-8": (trip(b"note", b'"\xc0\xaf"'), 400),
    "a lone surrogate": (trip(b"note", b'"\\ud800"'), 400),
    "a NUL": (TRIP + b"\0", 400),
    "two objects": (TRIP + TRIP, 400),
    "a comment": (b"/* canary */" + TRIP, 400),
    "single quotes": (TRIP.replace(b'"', b"'"), 400),
    "a trailing comma": (TRIP[:-1] + b",}", 400),
    "nothing": (b"", 400),
    "white space": (b" \r\n\t ", 400),
    "a list": (b"[%b]" % TRIP, 422),
    "a text": (b'"canary"', 422),
    "a number": (b"1", 422),
    "an identity with a NUL": (trip(b"transaction_id", b'"canary\\u0000"'), 422),
    "an identity with a line break": (trip(b"transaction_id", b'"canary\\n"'), 422),
    "an identity of another script": (trip(b"transaction_id", '"саnаry"'.encode()), 422),
    "an identity that is too long": (trip(b"transaction_id", b'"%b"' % (b"x" * 65)), 422),
    "an empty identity": (trip(b"transaction_id", b'""'), 422),
    "an identity as a number": (trip(b"transaction_id", b"1"), 422),
    "a time that is none": (trip(b"pickup_datetime", b'"canary"'), 422),
    "a time beyond the calendar": (trip(b"pickup_datetime", b'"10000-01-01T00:00:00"'), 422),
    "a time as a number": (trip(b"pickup_datetime", b"1700000000"), 422),
    "a text that is too long": (trip(b"store_and_fwd_flag", b'"%b"' % (b"canary" * 20)), 422),
    "a body that is too large": (trip(b"note", b'"%b"' % (b"y" * 70_000)), 413),
    "gzip": (gzip.compress(TRIP), 400),
    "XML": (b'<?xml version="1.0"?><!DOCTYPE canary [<!ENTITY x SYSTEM "file:///etc/passwd">]>', 400),
    "pickle": (b"\x80\x04canary.", 400),
}
REQUESTS: Final = {
    "no media type": (post(TRIP, "X: y"), 415),
    "plain text": (post(TRIP, "Content-Type: text/plain"), 415),
    "a form": (post(b"fare_amount=1", "Content-Type: application/x-www-form-urlencoded"), 415),
    "many parts": (post(TRIP, "Content-Type: multipart/form-data; boundary=canary"), 415),
    "JSON in UTF-16 by its name": (post(TRIP, f"{JSON}; charset=utf-16"), 415),
    "JSON in Latin-1 by its name": (post(TRIP, f"{JSON}; charset=iso-8859-1"), 415),
    "JSON with a parameter": (post(TRIP, f"{JSON}; canary=1"), 415),
    "NDJSON for one": (post(TRIP, NDJSON), 415),
    "a length without its body": (post(b"", length=10**9), 413),
    "a negative length": (post(TRIP, length=-1), 400),
    "a length that is no number": (post(TRIP, length="canary"), 400),
    "a length with a sign": (post(TRIP, length=f"+{len(TRIP)}"), 400),
    "two lengths": (post(TRIP, JSON, "Content-Length: 1"), 400),
    "a length beside chunks": (post(TRIP, JSON, "Transfer-Encoding: chunked"), 400),
    "another coding of the transfer": (raw(*CHUNKED[:3], "Transfer-Encoding: canary"), 400),
    "a chunk's size that is none": (raw(*CHUNKED, body=b"canary\r\n"), 400),
    "a chunk's size beyond measure": (raw(*CHUNKED, body=b"f" * 20 + b"\r\n"), 400),
    "chunks that are too many": (raw(*CHUNKED, body=chunked(b"y" * 40_000, b"y" * 40_000)), 413),
    "no Host": (raw("GET /healthz HTTP/1.1", "X: y"), 400),
    "two Hosts": (raw(*GET, "Host: canary"), 400),
    "a request of HTTP 0.9": (b"GET /healthz\r\n\r\n", 400),
    "a version that there is not": (raw("GET /healthz HTTP/3.7", "Host: x"), 400),
    "a header without a colon": (raw(*GET, "canary"), 400),
    "a header with a NUL": (raw(*GET, "X: canary\0"), 400),
    "a header with a bare line feed": (b"GET /healthz HTTP/1.1\nHost: x\nX : canary\n\n", 400),
    "white space before the colon": (raw(*GET, "X : canary"), 400),
    "a head that is too long": (raw(*GET, "X: " + "y" * 200_000), 400),
    "another method": (raw("TRACE /transaction HTTP/1.1", "Host: x", "X: canary"), 405),
    "a method that is none": (raw("CANARY / HTTP/1.1", "Host: x"), 400),
    "the method CONNECT": (raw("CONNECT canary:443 HTTP/1.1", "Host: x"), 400),
    "the method OPTIONS": (raw("OPTIONS /transaction HTTP/1.1", "Host: x"), 405),
    "DELETE": (raw("DELETE /transaction HTTP/1.1", "Host: x"), 405),
    "a path upwards": (raw("GET /../../etc/passwd HTTP/1.1", "Host: x"), 404),
    "an encoded path upwards": (raw("GET /%2e%2e/%2e%2e/etc/canary HTTP/1.1", "Host: x"), 404),
    "a path with a NUL": (raw("GET /canary%00 HTTP/1.1", "Host: x"), 404),
    "a path that is no UTF-8": (raw("GET /%ff%fe HTTP/1.1", "Host: x"), 404),
    "a path in Latin-1": (raw("GET /canaryé HTTP/1.1", "Host: x"), 400),
    "a slash too many": (raw("POST /transaction/ HTTP/1.1", "Host: canary", "Content-Length: 0"), 404),
    "a query that is no number": (raw("GET /alerts?recent=canary HTTP/1.1", "Host: x"), 422),
    "a query out of range": (raw("GET /alerts?recent=-1 HTTP/1.1", "Host: x"), 422),
    "a query beyond measure": (raw(f"GET /alerts?recent={'9' * 5000} HTTP/1.1", "Host: x"), 422),
    "an event that is too long": (raw("GET /alerts HTTP/1.1", "Host: x", f"Last-Event-ID: {'y' * 65}"), 422),
    "a body behind an upgrade": (post(TRIP, JSON, "Connection: Upgrade", "Upgrade: websocket"), 400),
    "a body behind an upgrade to HTTP 2": (post(TRIP, JSON, "Connection: Upgrade", "Upgrade: h2c"), 400),
    "the preface of HTTP 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a greeting of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x20" * 64, 400),
    "another protocol": (b"EHLO canary\r\n\r\n", 400),
    "zeros": (bytes(200), 400),
    "an Idempotency-Key with blanks": (post(TRIP, JSON, "Idempotency-Key: canary canary"), 400),
    "an Idempotency-Key that is too long": (post(TRIP, JSON, f"Idempotency-Key: {'x' * 65}"), 400),
    "an Idempotency-Key for many": (post(TRIP, NDJSON, "Idempotency-Key: a", path="/transactions"), 400),
    "a label of another kind": (post(b'{"transaction_id": "a", "verdict": "canary"}', path="/labels"), 422),
    "a label with more": (post(b'{"transaction_id": "a", "verdict": "fraud", "canary": 1}', path="/labels"), 422),
    "many that are none": (post(b"[1, null, true]", path="/transactions"), 422),
    "many of nothing": (post(b"\n\n\n", NDJSON, path="/transactions"), 400),
    "a line that is too long": (post(b'{"x": "%b"}' % (b"y" * 70_000), NDJSON, path="/transactions"), 413),
    "lists in lists for many": (post(b"[" * 60_000, path="/transactions"), 400),
    "a bulk that is too large": (post(b"[%b]" % (b" " * 300_000), path="/transactions"), 413),
}
CASES: Final = {name: (post(body), status) for name, (body, status) in BODIES.items()} | REQUESTS


def exchange(stack: Stack, data: bytes) -> bytes:
    """What comes back for some bytes, until the first answer is whole."""
    with socket.create_connection(("127.0.0.1", stack.settings.api_port), 10) as sock:
        with contextlib.suppress(OSError):  # refused before it was all there
            sock.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < length_of(answer):
            part = sock.recv(65536)
            if not part:
                break
            answer += part
    return answer


def length_of(answer: bytes) -> int:
    """Length of the body that an answer's head states."""
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)


def test_the_corpus_is_large() -> None:
    """As many cases as promised."""
    assert len(CASES) > 100


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_as_a_problem_and_the_next_one_is_served(stack: Stack, name: str) -> None:
    """A 4xx in RFC 9457's form that repeats nothing of the request; the API goes on."""
    data, status = CASES[name]
    head, _, body = exchange(stack, data).partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == status, body
    assert b"content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["type"].startswith("urn:fraudlib:problem:")
    assert problem["title"]
    assert problem["detail"]
    assert CANARY not in (head + body).lower()
    assert exchange(stack, post(TRIP)).startswith(b"HTTP/1.1 202 ")


ACCEPTED: Final = {
    "in chunks": raw(*CHUNKED, body=chunked(TRIP[:10], TRIP[10:])),
    "with a wait that is no number": post(TRIP, JSON, "Prefer: wait=NaN"),
    "with a wait that is negative": post(TRIP, JSON, "Prefer: wait=-1"),
    "with a question that needs no answer": post(TRIP, JSON, "Prefer: canary"),
    "with the media type in capitals": post(TRIP, 'CONTENT-TYPE: Application/JSON; Charset="UTF-8"'),
    "with an empty field": post(trip(b"tip_amount", b"null")),
    "with minus zero": post(fare(b"-0.0")),
    "with the smallest number": post(fare(b"5e-324")),
    "with a field of another world": post(trip(b"__proto__", b'{"canary": 1}')),
    "with HTTP 1.0": post(TRIP).replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_only_odd_is_accepted(stack: Stack, name: str) -> None:
    """Strict is not narrow: what HTTP and JSON allow passes."""
    answer = exchange(stack, ACCEPTED[name])
    assert answer.split(b" ")[1] == b"202", answer
    assert CANARY not in answer


def test_whole_requests_before_garbage_are_answered(stack: Stack) -> None:
    """What was accepted is said to be, though something follows that is no request; then the connection ends."""
    with socket.create_connection(("127.0.0.1", stack.settings.api_port), 10) as sock:
        sock.sendall(post(TRIP) * 2 + b"canary canary\r\n\r\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 202 ") == 2
    assert CANARY not in answer


def test_the_log_repeats_nothing_either(stack: Stack) -> None:
    """After all of the above there is no canary in any log, and no trace of a bug."""
    log = stack.log("api").read_text()
    assert "canary" not in log.lower()
    assert "Traceback" not in log
