"""Slow clients over real sockets: each is let go in time, and none holds the shutdown up."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from fraudlib.api import deadlines, gate
from fraudlib.api.app import create_app
from fraudlib.api.deadlines import Protocol, plain_post
from fraudlib.settings import Settings

HEAD = b"POST /transaction HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Quick(Protocol):
    """The protocol with deadlines that a test can wait for."""

    head_seconds, stall_seconds, head_bytes = 0.5, 0.5, 8192


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The API without a broker."""
    return create_app(Settings(kafka_bootstrap_servers="127.0.0.1:1"))


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[tuple[str, int]]:
    """The API on a socket of its own, with short deadlines."""
    config = uvicorn.Config(app, http=Quick, log_config=None, timeout_keep_alive=1, proxy_headers=False)
    server = uvicorn.Server(config)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield sock.getsockname()
        server.should_exit = True
        thread.join()


def closed_after(address: tuple[str, int], client: Callable[[socket.socket, float], None], most: float = 3.0) -> float:
    """Seconds until the server closed the connection on a client that goes on sending."""
    with socket.create_connection(address, most) as sock:
        started = time.monotonic()
        stop = threading.Event()

        def trickle() -> None:
            try:
                while not stop.wait(0.05):
                    client(sock, time.monotonic() - started)
            except OSError:
                return

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            while sock.recv(65536):
                pass
        except ConnectionError:
            pass
        finally:
            stop.set()
            sender.join()
        return time.monotonic() - started


def once(data: bytes) -> Callable[[socket.socket, float], None]:
    """A client that sends its bytes and then nothing more."""
    left = [data]
    return lambda sock, seconds: sock.sendall(left.pop()) if left else None


def first_then(first: bytes, rest: bytes) -> Callable[[socket.socket, float], None]:
    """A client that sends its first bytes, and then the rest over and over."""
    parts = [first]
    return lambda sock, seconds: sock.sendall(parts.pop() if parts else rest)


def pour(sock: socket.socket, data: bytes) -> None:
    """Send it over and over, for longer than any deadline, without reading."""
    for _ in range(400):
        sock.sendall(data)
        time.sleep(0.01)


@pytest.mark.parametrize(
    "client",
    [
        once(b""),
        once(HEAD),
        first_then(HEAD, b"X-Slow: y\r\n"),
        first_then(b"", b"\r\n"),
        first_then(GET, b"\r\n"),
        first_then(GET, b"G"),
    ],
    ids=["silent", "half-a-head", "endless-head", "empty-lines", "empty-lines-after-an-answer", "garbage"],
)
def test_a_head_that_does_not_end_closes_the_connection(
    address: tuple[str, int], client: Callable[[socket.socket, float], None]
) -> None:
    """Silence, a trickle, and a trickle between two requests: none outlives the deadline."""
    assert closed_after(address, client) < 1.5


def test_a_body_that_trickles_is_answered_408_and_closed(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not put the end of the wait off."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    with socket.create_connection(address, 3) as sock:
        sock.sendall(HEAD + b"\r\n")
        started = time.monotonic()
        sock.settimeout(0.05)
        answer = b""
        while time.monotonic() - started < 3:
            try:
                part = sock.recv(65536)
            except TimeoutError:
                sock.sendall(b" ")
                continue
            if not part:
                break
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert time.monotonic() - started < 1.5


def test_a_body_that_nobody_reads_does_not_keep_the_connection(address: tuple[str, int]) -> None:
    """Refused by its address, the request is answered, and its unfinished body does not hold the place."""
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n"
    assert closed_after(address, first_then(head, b" ")) < 1.5


def test_a_head_that_is_too_long_is_refused(address: tuple[str, int]) -> None:
    """A head without end costs no memory."""
    with socket.create_connection(address, 3) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(OSError, match=r"reset|pipe"):
            pour(sock, b"y" * 1000)


def test_a_quick_client_is_not_disturbed(address: tuple[str, int]) -> None:
    """One connection serves request after request for longer than any deadline, pipelined ones in order."""
    with socket.create_connection(address, 3) as sock:
        started = time.monotonic()
        while time.monotonic() - started < 1.2:
            sock.sendall(GET * 2)
            answer = b""
            while answer.count(b"alive") < 2:
                answer += sock.recv(65536)
            assert answer.count(b"HTTP/1.1 200 OK") == 2
            time.sleep(0.2)


def test_a_connection_without_a_request_is_closed_after_its_idle_time(address: tuple[str, int]) -> None:
    """One timer serves all deadlines: after many answers the idle time still counts from the last one."""
    with socket.create_connection(address, 3) as sock:
        for _ in range(5):
            sock.sendall(GET)
            assert b"alive" in sock.recv(65536)
            time.sleep(0.2)
        started = time.monotonic()
        assert sock.recv(65536) == b""
    assert 0.1 < time.monotonic() - started < 1.0


def test_a_transaction_that_comes_in_pieces_is_answered_as_one_that_comes_at_once(address: tuple[str, int]) -> None:
    """Whole in one packet, cut within the body or pipelined: the same answers, in order, on the same connection."""
    body = b'{"trip_distance": 1}'
    request = b"POST /transaction HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(address, 3) as sock:
        for pieces in ([request], [request[:-5], request[-5:]], [request * 2]):
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.05)
            answer, expected = b"", 2 if pieces == [request * 2] else 1
            while answer.count(b'"status":422') < expected:
                answer += sock.recv(65536)
            assert answer.count(b"HTTP/1.1 422 ") == expected


def test_an_answer_that_nobody_takes_is_dropped(address: tuple[str, int]) -> None:
    """A client that asks and does not read loses its connection, however much still waits for it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(address)
        sock.settimeout(3)
        page = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        with pytest.raises(OSError, match=r"reset|pipe"):
            pour(sock, page * 20)


def test_the_deadlines_are_within_ten_seconds() -> None:
    """What the README says of slow clients."""
    assert max(deadlines.HEAD_SECONDS, deadlines.STALL_SECONDS, gate.BODY_SECONDS) < 10


def test_a_stop_waits_for_nobody_who_is_slow(tmp_path: Path) -> None:
    """SIGTERM with an alert stream, half a head and half a body open ends the API with 0, well before 15 s."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"FRAUDLIB_API_PORT": str(port), "FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    log = tmp_path / "api.log"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "fraudlib.cli", "api"], env=env, stdout=file, stderr=file)
    socks: list[socket.socket] = []
    try:
        end = time.monotonic() + 40
        while b"startup complete" not in log.read_bytes():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        opening = (b"GET /alerts HTTP/1.1\r\nHost: x\r\n\r\n", HEAD, HEAD + b"\r\n{")
        socks += [socket.create_connection(("127.0.0.1", port), 5) for _ in opening]
        for sock, data in zip(socks, opening, strict=True):
            sock.sendall(data)
        assert socks[0].recv(4096).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(12) == 0, log.read_text()
        assert time.monotonic() - started < 8
    finally:
        process.kill()
        process.wait()
        for sock in socks:
            sock.close()


WHOLE = b"POST /transaction HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def kind_of(sock: socket.socket, *parts: bytes) -> str:
    """Send parts of a request; the kind of the problem that answers it."""
    for part in parts:
        sock.sendall(part)
        time.sleep(0.02)
    # Byte by byte: the answer after this one may be there too, and is left to be read.
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, "the connection was closed without an answer"
        head += byte
    line, rest = head.split(b"\r\n", 1)
    headers = http.client.parse_headers(io.BytesIO(rest))
    if line.split()[1] == b"503":
        assert int(headers["Retry-After"]) > 0
        assert headers["content-type"] == "application/problem+json"
    body = sock.recv(int(headers["content-length"]), socket.MSG_WAITALL)
    return str(json.loads(body)["type"].rpartition(":")[2])


def test_a_transaction_that_is_not_admitted_is_refused_unparsed(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or in parts, over a kept connection; once there is room the same connection gets through again."""
    gate = app.gate  # type: ignore[attr-defined]
    unparsed, refuse = [], gate.refuse

    def noting(path: str, to_come: int) -> bytes | None:
        unparsed.append(to_come)
        return bytes(refuse(path, to_come))

    with socket.create_connection(address, 3) as sock:
        assert kind_of(sock, WHOLE) == "invalid-transaction"
        with monkeypatch.context() as full:
            full.setitem(gate._in_flight, "", 1_000_000)
            full.setattr(gate, "refuse", noting)
            for parts in ([WHOLE], [WHOLE], [WHOLE[:30], WHOLE[30:]], [WHOLE[:-2], WHOLE[-2:]], [WHOLE]):
                assert kind_of(sock, *parts) == "too-many-in-flight"
        assert kind_of(sock, WHOLE) == "invalid-transaction"
    # All but the one whose head came in parts.
    assert unparsed == [0, 0, 2, 0]


@pytest.mark.parametrize("head", [b"Content-Length: %d", b"X: y\r\nContent-Length: %d\r\nExpect: nothing"])
def test_a_bulk_that_is_not_admitted_leaves_its_connection_usable(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    """Its body, longer than any head may be, is let pass without being taken for the next request, parsed or not."""
    gate = app.gate  # type: ignore[attr-defined]
    body = b"{}\n" * 100_000
    start = b"POST /transactions HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
    bulk = start + head % len(body) + b"\r\n\r\n" + body
    with socket.create_connection(address, 3) as sock:
        with monkeypatch.context() as full:
            full.setitem(gate._in_flight, "/transactions", 1_000_000)
            assert [kind_of(sock, bulk), kind_of(sock, bulk + WHOLE)] == ["too-many-in-flight"] * 2
        # The one that came with the second bulk, and another.
        assert [kind_of(sock), kind_of(sock, WHOLE)] == ["invalid-transaction"] * 2


def test_who_is_refused_is_not_read_for_a_moment_only(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not wait gets its next refusals a little later, and is read again afterwards."""
    gate = app.gate  # type: ignore[attr-defined]
    with monkeypatch.context() as full:
        full.setitem(gate._in_flight, "", 1_000_000)
        with socket.create_connection(address, 3) as sock:
            started = time.monotonic()
            for _ in range(11):
                assert kind_of(sock, WHOLE) == "too-many-in-flight"
            assert time.monotonic() - started > 10 * (deadlines.REFUSED_SECONDS - deadlines.REFUSED_SLACK)
            # Nor is it forgotten: with room again, it gets through as anybody does.
            full.undo()
            assert kind_of(sock, WHOLE) == "invalid-transaction"


def test_of_requests_that_come_at_once_those_without_a_place_are_refused_unparsed(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place is left and two requests are read in the same turn: the one that has its place by then keeps it."""
    gate = app.gate  # type: ignore[attr-defined]
    unparsed, refuse, receive = [], gate.refuse, Quick.data_received

    def noting(path: str, to_come: int) -> bytes | None:
        unparsed.append(path)
        return refuse(path, to_come)  # type: ignore[no-any-return]

    def slowly(protocol: Quick, data: bytes) -> None:
        if data == GET:
            time.sleep(0.3)
        receive(protocol, data)

    with contextlib.ExitStack() as stack, monkeypatch.context() as nearly_full:
        # Before there are connections: each keeps the method that it started with.
        nearly_full.setattr(Quick, "data_received", slowly)
        socks = [stack.enter_context(socket.create_connection(address, 3)) for _ in range(3)]
        assert [kind_of(sock, WHOLE) for sock in socks] == ["invalid-transaction"] * 3
        nearly_full.setattr(gate, "refuse", noting)
        nearly_full.setitem(gate._in_flight, "", Settings().max_in_flight - 1)
        socks[0].sendall(GET)
        time.sleep(0.1)
        for sock in socks[1:]:
            sock.sendall(WHOLE)
        assert sorted(map(kind_of, socks[1:])) == ["invalid-transaction", "too-many-in-flight"]
        assert unparsed == ["/transaction"]
        assert kind_of(socks[1], WHOLE) == "invalid-transaction"
    assert gate._announced == {"": 0, "/transactions": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel drops what has come on Linux only")
def test_a_bulk_that_is_refused_again_is_dropped_by_the_kernel(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of its body is copied, and the requests after it are read from their first byte on."""
    gate = app.gate  # type: ignore[attr-defined]
    body = b"{}\n" * 15_000
    bulk = WHOLE.replace(b"/transaction", b"/transactions").replace(b" 2\r\n\r\n{}", b" %d\r\n\r\n" % len(body)) + body
    received, receive = [0], Quick.data_received

    def counting(protocol: Quick, data: bytes) -> None:
        received[0] += len(data)
        receive(protocol, data)

    # Before there is a connection: it keeps the method that it started with.
    monkeypatch.setattr(Quick, "data_received", counting)
    with socket.create_connection(address, 3) as sock:
        with monkeypatch.context() as full:
            full.setitem(gate._in_flight, "/transactions", 1_000_000)
            full.setattr(deadlines, "REFUSED_SECONDS", 0.3)
            for _ in range(3):
                sock.sendall(bulk)
                assert kind_of(sock) == "too-many-in-flight"
            # The first one, which came while the connection was read as any.
            assert received == [len(bulk)]
        assert [kind_of(sock, WHOLE), kind_of(sock, WHOLE)] == ["invalid-transaction"] * 2


def test_a_large_body_that_is_announced_holds_no_others_up(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads alone, of the longest bodies that are allowed, do not push other refused clients back for a second."""
    gate = app.gate  # type: ignore[attr-defined]
    length = b"Content-Length: %d\r\n\r\n" % Settings().max_batch_body_bytes
    head = WHOLE.replace(b"/transaction", b"/transactions").replace(b"Content-Length: 2\r\n\r\n{}", length)
    with contextlib.ExitStack() as stack, monkeypatch.context() as full:
        socks = [stack.enter_context(socket.create_connection(address, 3)) for _ in range(9)]
        for room in ("", "/transactions"):
            full.setitem(gate._in_flight, room, 1_000_000)
        for sock in socks[1:]:
            assert kind_of(sock, head) == "too-many-in-flight"
        assert kind_of(socks[0], WHOLE) == "too-many-in-flight"
        started = time.monotonic()
        assert kind_of(socks[0], WHOLE) == "too-many-in-flight"
        assert time.monotonic() - started < 0.3


def test_who_leaves_while_it_is_not_read_is_forgotten(
    address: tuple[str, int], app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is found when it is its turn to be read again, not at the deadline of an idle connection."""
    gate = app.gate  # type: ignore[attr-defined]
    with monkeypatch.context() as full, socket.create_connection(address, 3) as sock:
        full.setitem(gate._in_flight, "", 1_000_000)
        assert kind_of(sock, WHOLE) == "too-many-in-flight"
        started = time.monotonic()
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
        assert time.monotonic() - started < Quick.head_seconds / 2


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-4],
        WHOLE + b"G",
        WHOLE + WHOLE,
        WHOLE.replace(b"/transaction", b"/labels"),
        WHOLE.replace(b"/transaction", b"/transaction?"),
        WHOLE.replace(b"Host: x", b"Connection: close"),
        WHOLE.replace(b"Host: x", b"Transfer-Encoding: chunked"),
        WHOLE.replace(b"Host: x", b"Expect: 100-continue"),
        WHOLE.replace(b"Host: x", b"Content-Length: 2"),
        WHOLE.replace(b"Content-Length: 2", b"X-Content-Length: 2"),
        WHOLE.replace(b"Content-Length: 2", b"Content-Length: +2"),
        WHOLE.replace(b"Content-Length: 2\r\n", b""),
    ],
)
def test_what_may_not_be_one_plain_post_is_parsed(data: bytes) -> None:
    """A part of a head, more than one request, another address, or a body whose length could be read in two ways."""
    assert plain_post(WHOLE) == ("/transaction", 0)
    assert plain_post(WHOLE[:-1]) == ("/transaction", 1)
    assert plain_post(WHOLE.replace(b"/transaction", b"/transactions")) == ("/transactions", 0)
    assert plain_post(data) is None
