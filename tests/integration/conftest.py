"""Broker, API and worker as the processes that a user starts, on free ports, and what tests ask of them."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from fraudlib import paths

FRAUDLIB = Path(sys.executable).with_name("fraudlib")
START_SECONDS = 40.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(what: Callable[[], Any], seconds: float = START_SECONDS, why: str = "") -> Any:
    """First true result; fails with `why` where none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := what():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {why or what}")


@dataclass
class Service:
    """One running process of the project."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Send a signal; the exit code, within the time that a service may take."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def says(self, text: str) -> bool:
        """Whether the log has the text."""
        return text in self.log.read_text()


@dataclass
class Site:
    """A place with its own ports, where services run."""

    folder: Path
    env: dict[str, str]
    services: list[Service] = field(default_factory=list)

    def start(self, name: str, **changes: str) -> Service:
        """Start `fraudlib NAME`."""
        log = self.folder / f"{name}-{len(self.services)}.log"
        env = {**os.environ, **self.env, "FRAUDLIB_METRICS_PORT": str(free_port()), **changes}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [FRAUDLIB, name], env=env, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
            )
        service = Service(name, process, log)
        self.services.append(service)
        return service

    def start_worker(self, **changes: str) -> Service:
        """Start a worker and wait until it has partitions."""
        worker = self.start("worker", **changes)
        until(lambda: worker.says("partitions assigned"), why=f"a worker with partitions, see {worker.log}")
        return worker

    def call(self, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of a request; a POST where there is a body."""
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", int(self.env["FRAUDLIB_API_PORT"]), timeout=30)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(
                "GET" if raw is None else "POST", path, raw, {"Content-Type": "application/json", **names}
            )
            answer = connection.getresponse()
            content = answer.read()
        is_json = "json" in answer.getheader("content-type", "")
        return answer.status, dict(answer.getheaders()), json.loads(content) if is_json else content

    def is_ready(self) -> bool:
        """Whether the API says that it is."""
        try:
            return self.call("/readyz")[0] == 200
        except OSError:
            return False

    def produce(self, topic: str, *messages: tuple[bytes | None, bytes | None]) -> None:
        """Write messages straight to a topic."""

        async def write() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.env["FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"]) as producer:
                for key, value in messages:
                    await producer.send_and_wait(topic, value, key)

        asyncio.run(write())

    def read(self, topic: str, enough: Callable[[list[Any]], bool], seconds: float = 30.0) -> list[Any]:
        """Messages of a topic from its beginning, in order within each partition, until there are enough."""

        async def gather() -> list[Any]:
            found: list[Any] = []
            async with AIOKafkaConsumer(
                bootstrap_servers=self.env["FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS"],
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            ) as consumer:
                partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
                consumer.assign(partitions)
                await consumer.seek_to_beginning(*partitions)
                end = time.monotonic() + seconds
                while not enough(found) and time.monotonic() < end:
                    for messages in (await consumer.getmany(timeout_ms=200)).values():
                        found += messages
            return found

        return asyncio.run(gather())

    def close(self) -> None:
        """Kill whatever still runs."""
        for service in self.services:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)
            service.process.wait(5)


def _site(folder: Path) -> Site:
    broker, api = str(free_port()), str(free_port())
    env = {
        "FRAUDLIB_ROOT": str(paths.root()),
        "FRAUDLIB_BROKER_PORT": broker,
        "FRAUDLIB_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker}",
        "FRAUDLIB_API_PORT": api,
        "FRAUDLIB_SESSION_TIMEOUT_MS": "3000",
        "FRAUDLIB_STATE_DIR": str(folder / "state"),
    }
    return Site(folder, env)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A place of one's own for one test; nothing runs there yet."""
    place = _site(tmp_path)
    yield place
    place.close()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A place that the tests of one file share; nothing runs there yet."""
    place = _site(tmp_path_factory.mktemp("site"))
    yield place
    place.close()
