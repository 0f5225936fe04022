"""What a client is told about encryption and identity, and what it says where that is wrong."""

import asyncio
import base64
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.protocol.admin import ApiVersionResponse_v0, SaslAuthenticateResponse_v1, SaslHandShakeResponse_v1

from fraudlib.cli import main
from fraudlib.errors import ServiceError
from fraudlib.settings import Settings
from fraudlib.wire import credentials, topics
from tests.integration.conftest import free_port


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """A file with a password."""
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    return path


def test_nothing_is_asked_for_by_default() -> None:
    """A broker on the same machine needs neither encryption nor a name."""
    assert credentials.security_options(Settings()) == {}


def test_the_password_is_read_from_its_file(password: Path) -> None:
    """Name, mechanism and the file's content without its line end reach the client."""
    given = {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_username": "api", "kafka_password_file": password}
    assert credentials.security_options(Settings(**given)) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "api",
        "sasl_plain_password": "s3cret",
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kafka_security_protocol": "SSL", "kafka_ca_file": "nowhere.pem"}, "CA_FILE.*nowhere.pem.*No such file"),
        ({"kafka_security_protocol": "SSL", "kafka_ca_file": __file__}, "CA_FILE.*no certificate in PEM format"),
        ({"kafka_security_protocol": "SASL_SSL"}, "FRAUDLIB_KAFKA_USERNAME"),
        (
            {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_username": "a", "kafka_password_file": "nowhere"},
            "PASSWORD_FILE.*nowhere.*No such file",
        ),
        (
            {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_username": "a", "kafka_password_file": "/dev/null"},
            "PASSWORD_FILE.*empty",
        ),
    ],
)
def test_a_wrong_file_is_named(given: dict[str, Any], sentence: str) -> None:
    """The sentence names the setting, the file and what is wrong with it."""
    with pytest.raises(ServiceError, match=sentence):
        credentials.security_options(Settings(**given))


@pytest.mark.parametrize("service", ["api", "worker", "topics"])
def test_a_service_without_its_password_does_not_start(service: str) -> None:
    """One sentence and exit code 1 at once, rather than a service that tries for ever."""
    env = {"FRAUDLIB_KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "FRAUDLIB_API_PORT": str(free_port())}
    command = [sys.executable, "-m", "fraudlib.cli", service]
    done = subprocess.run(command, env=env | {"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FRAUDLIB_KAFKA_PASSWORD_FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broker_that_is_not_there_is_said() -> None:
    """The sentence has the address and what to do."""
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    with pytest.raises(ServiceError, match=rf"{settings.kafka_bootstrap_servers} does not answer.*fraudlib broker"):
        topics.prepare(settings, patience_s=0)
    assert "does not answer" in asyncio.run(credentials.refusal(settings))


async def _impostor(first: Callable[[bytes], bytes], settings: Settings) -> str:
    """What is said of a broker that begins SCRAM with `first`(nonce) and ends it with a signature of its own."""
    is_over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turns = iter((first, lambda nonce: b"v=" + base64.b64encode(b"made up")))
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                frame = await reader.readexactly(size)
                key, _, correlation = struct.unpack_from(">hhi", frame)
                answer: Any
                if key == 18:
                    answer = ApiVersionResponse_v0(error_code=0, api_versions=[(17, 0, 1), (18, 0, 0), (36, 0, 1)])
                elif key == 17:
                    answer = SaslHandShakeResponse_v1(error_code=0, enabled_mechanisms=["SCRAM-SHA-256"])
                else:
                    nonce = frame.partition(b",r=")[2]
                    answer = SaslAuthenticateResponse_v1(0, None, next(turns)(nonce), 0)
                raw = struct.pack(">i", correlation) + answer.encode()
                writer.write(struct.pack(">i", len(raw)) + raw)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            is_over.set()

    port = int(settings.kafka_bootstrap_servers.rpartition(":")[2])
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        why = await credentials.refusal(settings)
        await is_over.wait()
        return why


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (lambda nonce: b"r=" + nonce + b"1,s=c2FsdA==,i=4096", "does not prove by SCRAM-SHA-256"),
        (lambda nonce: b"r=another,s=c2FsdA==,i=4096", "does not prove by SCRAM-SHA-256"),
        (lambda nonce: b"\xff\xff", "does not prove by SCRAM-SHA-256"),
        (lambda nonce: b"e=unknown-user", "refuses user 'a' by SCRAM-SHA-256"),
    ],
    ids=["wrong signature", "wrong nonce", "no text", "refusal"],
)
def test_a_broker_that_knows_no_password_is_said(first: Callable[[bytes], bytes], said: str, password: Path) -> None:
    """Whatever answers where SCRAM was expected: one sentence, and the password in none of it."""
    settings = Settings(
        kafka_bootstrap_servers=f"127.0.0.1:{free_port()}",
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_username="a",
        kafka_password_file=password,
    )
    why = asyncio.run(_impostor(first, settings))
    assert said in why
    assert "s3cret" not in why


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SASL_MECHANISM", "SASL/SCRAM", "'SCRAM-SHA-512' or 'PLAIN', found 'SASL/SCRAM'"),
        ("SASL_MECHANISM", "scram-sha-256", "found 'scram-sha-256'"),
        ("SECURITY_PROTOCOL", "TLS", "'SASL_SSL', found 'TLS'"),
        *(("BOOTSTRAP_SERVERS", text, "expected HOST:PORT") for text in ("", "a:b", "[::1", "a:99999", "a:1,b:", ":1")),
    ],
)
def test_a_wrong_setting_of_the_broker_is_named(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the setting, what is possible and what was found; nothing waits for a broker of no address."""
    monkeypatch.setenv(f"FRAUDLIB_KAFKA_{name}", value)
    monkeypatch.setattr(sys, "argv", ["fraudlib", "topics"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"FRAUDLIB_KAFKA_{name}: " in said
    assert sentence in said


@pytest.mark.parametrize(
    "text", ["kafka", "kafka:9092", "a:1,b_c.d-e:65535", "a:1, b:2", "[::1]:9092", "10.0.0.1:9093"]
)
def test_addresses_of_brokers_are_taken(text: str) -> None:
    """Names, addresses, several of them."""
    assert Settings(kafka_bootstrap_servers=text).kafka_bootstrap_servers == text
