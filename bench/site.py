"""Broker, API and workers as the processes that a user starts, on free ports, with what faults need: kill and pause."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from fraudlib import paths
from fraudlib.demo.stack import free_port
from fraudlib.errors import ServiceError
from fraudlib.settings import Settings

START_SECONDS: Final = 60.0
LOG_LINES: Final = 12


def until(what: Callable[[], Any], seconds: float = START_SECONDS, why: str = "") -> Any:
    """First true result, asked for again and again.

    Raises
    ------
    ServiceError
        If none comes in time.
    """
    end = time.monotonic() + seconds
    while not (result := what()):
        if time.monotonic() > end:
            raise ServiceError(f"expected {why or what} within {seconds:.0f} s")
        time.sleep(0.02)
    return result


@dataclass
class Service:
    """One running process.

    Attributes
    ----------
    name : command or module. process : of the operating system. log : file with its output.
    metrics_port : where a worker shows its metrics.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    metrics_port: int

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """The process and its children."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Processor time of the process and its children so far, in s."""
        return float(sum(sum(p.cpu_times()[:2]) for p in self.family()))

    def says(self, text: str) -> bool:
        """Whether the log has the text."""
        return text in self.log.read_text("utf-8", "replace")

    def send(self, number: int) -> None:
        """Send a signal; nothing where the process has ended."""
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 16.0) -> int:
        """End the process; its exit code. A paused one is woken first."""
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Site:
    """A place with its own ports and logs, as a context manager; leaving it ends whatever still runs.

    Parameters
    ----------
    changes : settings that differ from the defaults.
    """

    def __init__(self, **changes: Any) -> None:
        broker = free_port()
        given = {"broker_port": broker, "kafka_bootstrap_servers": f"127.0.0.1:{broker}", "api_port": free_port()}
        self.settings = Settings(**(given | changes))
        self.services: list[Service] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fraudlib-bench-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in self.services:
            service.send(signal.SIGCONT)
            service.process.terminate() if service.name == "broker" else service.process.kill()
        for service in self.services:
            service.stop(signal.SIGKILL)
        self._folder.cleanup()

    @property
    def bootstrap(self) -> str:
        """Address of the broker."""
        return self.settings.kafka_bootstrap_servers

    def start(self, name: str, command: Sequence[str] | None = None, **changes: Any) -> Service:
        """Start a command of the project, or `python COMMAND`, with the settings and the changes to them."""
        port = free_port()
        given = self.settings.model_dump() | {"metrics_port": port} | changes
        environment = {f"FRAUDLIB_{key.upper()}": str(value) for key, value in given.items() if value is not None}
        program = [sys.executable, *(command or ["-m", "fraudlib.cli", name])]
        return self.start_program(name, program, environment | {"PYTHONUNBUFFERED": "1"}, port)

    def start_program(
        self, name: str, program: Sequence[str], environment: Mapping[str, str] | None = None, metrics_port: int = 0
    ) -> Service:
        """Start any program, with what is added to this process's environment."""
        log = Path(self._folder.name) / f"{name}-{len(self.services)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                program,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=paths.root(),
                start_new_session=True,
            )
        service = Service(name, process, log, metrics_port)
        self.services.append(service)
        return service

    def start_broker(self) -> Service:
        """Start the embedded broker and wait for it."""
        broker = self.start("broker")
        self.wait_for(broker, "broker is up")
        return broker

    def start_api(self) -> Service:
        """Start the API and wait until it is ready."""
        api = self.start("api")
        until(lambda: self._is_ready(api), why=f"a ready API; {_tail(api)}")
        return api

    def start_worker(self, command: Sequence[str] | None = None, **changes: Any) -> Service:
        """Start a worker and wait until it has partitions."""
        worker = self.start("worker", command, **changes)
        self.wait_for(worker, "partitions assigned")
        return worker

    def wait_for(self, service: Service, text: str) -> None:
        """Wait until a service's log has the text."""

        def said() -> bool:
            if not service.is_running:
                raise ServiceError(f"{service.name} ended with exit code {service.process.poll()}; {_tail(service)}")
            return service.says(text)

        until(said, why=f"{service.name} to say {text!r}")

    def _is_ready(self, api: Service) -> bool:
        if not api.is_running:
            raise ServiceError(f"the API ended with exit code {api.process.poll()}; {_tail(api)}")
        try:
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", self.settings.api_port, timeout=2)
            ) as connection:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
        except OSError:
            return False


def _tail(service: Service) -> str:
    return "its log ends: " + " | ".join(service.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
