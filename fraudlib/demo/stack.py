"""The local stack: embedded broker, API and worker as child processes that never outlive their owner."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fraudlib.api.keys import authorization
from fraudlib.errors import ServiceError
from fraudlib.settings import Settings

START_SECONDS: Final = {"broker": 20.0, "api": 30.0, "worker": 60.0}
# The worker and the API drain within 15 s by contract; the broker goes last, as both need it to drain.
STOP_SECONDS: Final = 16.0
LOG_LINES: Final = 12
TRY_TRIP: Final = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
TRY_SECONDS: Final = 20.0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, setting: str, option: str) -> None:
    """Refuse a port that something else listens on.

    Raises
    ------
    ServiceError
        If it is busy or may not be used; the message names the setting and a port that is free.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise ServiceError(
                f"port {port} of {host} cannot be used ({(err.strerror or str(err)).lower()}): "
                f"set {setting} or {option} to another, such as {free_port(host)}"
            ) from err


def reachable(host: str) -> str:
    """Address to reach a service by that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104


def answers(host: str, port: int, path: str | None) -> bool:
    """Whether a port takes connections and, where `path` is given, answers GET `path` with 200."""
    try:
        if path is None:
            socket.create_connection((host, port), 1.0).close()
            return True
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=2.0)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def environment(settings: Settings) -> dict[str, str]:
    """Environment that gives a child process exactly these settings."""
    given = {f"FRAUDLIB_{name.upper()}": value for name, value in settings.model_dump().items()}
    kept = {name: value for name, value in os.environ.items() if name not in given}
    return {**kept, **{name: str(value) for name, value in given.items() if value is not None}, "PYTHONUNBUFFERED": "1"}


class Stack:
    """Child processes in one process group with a guard, as a context manager; leaving it ends them all.

    The guard ends the group when this process is gone in any way, kill -9 included.

    Parameters
    ----------
    settings : Settings
        Handed to every service through its environment.
    logs : Path
        Folder of the services' logs, made when missing.
    """

    def __init__(self, settings: Settings, logs: Path) -> None:
        self.settings = settings
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        watched, self._owner = os.pipe()
        alive, self._member = os.pipe()
        command = [sys.executable, "-m", "fraudlib.demo.guard", str(watched), str(alive)]
        self._guard = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(watched, alive), process_group=0)
        os.close(watched)
        os.close(alive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop("worker", "api")
            self.stop("broker")
        finally:
            # Also where the loop was cut short by a second Ctrl-C: what is left goes with the group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            for child in (*self.running.values(), self._guard):
                child.wait()
            os.close(self._owner)
            os.close(self._member)

    def spawn(self, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a command inside the guarded group, with the stack's settings as its environment."""
        child: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env=environment(self.settings),
            process_group=self._guard.pid,
            pass_fds=(self._member,),
            **options,  # type: ignore[call-overload]
        )
        return child

    def log(self, name: str) -> Path:
        """Log file of one service."""
        return self.logs / f"{name}.log"

    def start(self, *names: str) -> Iterator[tuple[str, float]]:
        """Start services ("broker", "api", "worker"), the broker before the others; yields each with its seconds.

        Raises
        ------
        ServiceError
            If one ends or does not answer in time; the message shows the end of its log.
        """
        if "broker" in names:
            yield self._wait("broker", self._launch("broker"))
        launched = [(name, self._launch(name)) for name in names if name != "broker"]
        for name, since in launched:
            yield self._wait(name, since)

    def _launch(self, name: str) -> float:
        with self.log(name).open("wb") as log:
            command = [sys.executable, "-m", "fraudlib.cli", name]
            self.running[name] = self.spawn(command, stdout=log, stderr=subprocess.STDOUT)
        return time.monotonic()

    def _wait(self, name: str, since: float) -> tuple[str, float]:
        while not self._answers(name):
            self.check()
            if time.monotonic() - since > START_SECONDS[name]:
                waited = f"{START_SECONDS[name]:.0f} s"
                raise ServiceError(f"fraudlib {name} was not ready after {waited}; {self._last_lines(name)}")
            time.sleep(0.05)
        return name, time.monotonic() - since

    def try_out(self) -> float:
        """Send one plain trip and wait for its score; seconds that it took, the first being slower than any later.

        Raises
        ------
        ServiceError
            If no score comes back in time.
        """
        started = time.monotonic()
        s = self.settings
        headers = {"Content-Type": "application/json", "Prefer": f"wait={TRY_SECONDS:g}", **authorization(s)}
        with contextlib.closing(
            http.client.HTTPConnection(reachable(s.api_host), s.api_port, timeout=30)
        ) as connection:
            try:
                connection.request("POST", "/transaction", TRY_TRIP, headers)
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as err:
                self.check()
                raise ServiceError(f"{self.url} did not answer ({err}); {self._last_lines('api')}") from err
        if status != 200:
            raise ServiceError(f"no score came back within {TRY_SECONDS:g} s; {self._last_lines('worker')}")
        return time.monotonic() - started

    def check(self) -> None:
        """Raise ServiceError when a service has ended by itself."""
        for name, child in self.running.items():
            if (code := child.poll()) is not None:
                raise ServiceError(f"fraudlib {name} ended with exit code {code}; {self._last_lines(name)}")

    def stop(self, *names: str) -> None:
        """Drain services side by side by SIGTERM, by SIGKILL where one takes too long."""
        children = [self.running[name] for name in names if name in self.running]
        for child in children:
            child.terminate()
        end = time.monotonic() + STOP_SECONDS
        for child in children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    @property
    def url(self) -> str:
        """Address of the API, as this machine reaches it."""
        return f"http://{reachable(self.settings.api_host)}:{self.settings.api_port}"

    def _answers(self, name: str) -> bool:
        s = self.settings
        host, port, path = {
            "broker": (s.broker_host, s.broker_port, None),
            "api": (s.api_host, s.api_port, "/readyz"),
            "worker": (s.metrics_host, s.metrics_port, "/readyz"),
        }[name]
        return answers(reachable(host), port, path)

    def _last_lines(self, name: str) -> str:
        lines = self.log(name).read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        return f"the end of {self.log(name)}:\n" + "\n".join(f"  {line}" for line in lines or ["(empty)"])
