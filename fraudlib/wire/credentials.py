"""Access to a broker that asks for it: encryption, name and password, and in plain words why it was refused."""

import ssl
from pathlib import Path
from typing import Any, Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from fraudlib.errors import ServiceError
from fraudlib.settings import Settings

_PROBE_MS: Final = 3000
# What connecting raises; the last two where something answers that knows no SCRAM, or not the password.
NOT_CONNECTED: Final = (KafkaError, OSError, TimeoutError, KeyError, ValueError)


def security_options(settings: Settings) -> dict[str, Any]:
    """Options of a Kafka client about encryption and identity; none where the broker asks for neither.

    The files are read at each call, so that a new connection takes what was put there meanwhile.

    Raises
    ------
    ServiceError
        If a file is missing, unreadable or empty, or a user is named without a password.
    """
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {} if protocol == "PLAINTEXT" else {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings.kafka_ca_file)
    if protocol.startswith("SASL"):
        if not settings.kafka_username or settings.kafka_password_file is None:
            raise ServiceError(
                f"FRAUDLIB_KAFKA_SECURITY_PROTOCOL is {protocol}: expected a user and a password, found none; set "
                "FRAUDLIB_KAFKA_USERNAME and FRAUDLIB_KAFKA_PASSWORD_FILE"
            )
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = _secret(settings.kafka_password_file)
    return options


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as err:
        why = "no certificate in PEM format" if isinstance(err, ssl.SSLError) else err.strerror
        raise ServiceError(f"FRAUDLIB_KAFKA_CA_FILE: expected certificates in {ca_file}, found: {why}") from err


def _secret(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        why = getattr(err, "strerror", None) or "no text"
        raise ServiceError(f"FRAUDLIB_KAFKA_PASSWORD_FILE: expected a password in {path}, found: {why}") from err
    if not text:
        raise ServiceError(f"FRAUDLIB_KAFKA_PASSWORD_FILE: expected a password in {path}, found an empty file")
    return text


async def refusal(settings: Settings) -> str:
    """Why no broker can be used, as a sentence about the first one, "" where one lets this client in."""
    try:
        options = security_options(settings)
    except ServiceError as err:
        return str(err)
    first = ""
    for host, port, _ in collect_hosts(settings.kafka_bootstrap_servers):
        try:
            connection = await create_conn(host, port, request_timeout_ms=_PROBE_MS, **options)
        except NOT_CONNECTED as err:
            first = first or f"the broker at {host}:{port} {_because(err, settings)}"
        else:
            connection.close()
            return ""
    return first


async def no_broker(settings: Settings) -> ServiceError:
    """The error to raise where a command cannot go on without the broker."""
    why = await refusal(settings) or f"the broker at {settings.kafka_bootstrap_servers} went away again; try again"
    if " does not answer " in why:
        why += "; start it with `fraudlib broker` or set FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"
    return ServiceError(why)


def _because(err: Exception, settings: Settings) -> str:
    protocol = settings.kafka_security_protocol
    if isinstance(err, ssl.SSLCertVerificationError):
        authority = settings.kafka_ca_file or "any authority that this machine knows"
        return (
            f"shows a certificate that {authority} does not vouch for ({err.verify_message}); "
            "nothing was sent, correct FRAUDLIB_KAFKA_CA_FILE or the name in FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"
        )
    if isinstance(err, ssl.SSLError):
        return f"does not speak TLS ({err.reason}) although FRAUDLIB_KAFKA_SECURITY_PROTOCOL is {protocol}"
    if isinstance(err, ValueError) and protocol.startswith("SASL"):
        return (
            f"does not prove by {settings.kafka_sasl_mechanism} that it knows the password ({err}); correct "
            "FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS, or the file of FRAUDLIB_KAFKA_PASSWORD_FILE"
        )
    if isinstance(err, (AuthenticationFailedError, SaslAuthenticationFailed, KeyError)):
        return (
            f"refuses user {settings.kafka_username!r} by {settings.kafka_sasl_mechanism}; correct "
            "FRAUDLIB_KAFKA_USERNAME and the file of FRAUDLIB_KAFKA_PASSWORD_FILE"
        )
    if isinstance(err, UnsupportedSaslMechanismError):
        return f"does not take {settings.kafka_sasl_mechanism}; set FRAUDLIB_KAFKA_SASL_MECHANISM"
    if isinstance(err, KafkaError):
        return f"closed the connection ({err}); FRAUDLIB_KAFKA_SECURITY_PROTOCOL is {protocol}"
    return f"does not answer ({err or type(err).__name__})"
