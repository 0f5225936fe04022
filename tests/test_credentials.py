"""What a client is told about encryption and identity, and what it says where that is wrong."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
