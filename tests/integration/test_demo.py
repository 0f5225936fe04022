"""The demo as a user runs it: the whole stack as processes, and nothing left of it afterwards."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from fraudlib import paths
from fraudlib.demo.stack import free_port

ARTIFACTS = paths.root() / "artifacts"
PORTS = ("--port", "--broker-port", "--metrics-port")
MARK = "FRAUD_DEMO_TEST"


@dataclass
class Demo:
    """One run of `fraudlib demo` with free ports; every process that it starts inherits the mark."""

    output: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    artifacts: Path = ARTIFACTS
    ports: dict[str, int] = field(default_factory=lambda: {option: free_port() for option in PORTS})

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it; stdout and stderr go to one file."""
        ports = [word for option, port in self.ports.items() for word in (option, str(port))]
        command = [str(Path(sys.executable).with_name("fraudlib")), "demo", *ports, *arguments]
        env = {**os.environ, MARK: self.mark, "FRAUDLIB_ARTIFACTS_DIR": str(self.artifacts)}
        with self.output.open("wb") as file:
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.output.read_text("utf-8")

    def wait_for(self, words: str, seconds: float = 60.0) -> None:
        """Wait until it has printed some words."""
        wait_until(lambda: words in self.text, seconds, lambda: f"no {words!r} in:\n{self.text}")

    def left(self) -> list[str]:
        """Command lines of its processes that still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found


def wait_until(holds: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, why()
        time.sleep(0.05)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that has not started; what a failing test leaves is killed."""
    run = Demo(tmp_path / "output.txt")
    yield run
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == run.mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


@pytest.mark.slow
def test_the_demo_ends_by_itself_with_everything_scored_and_nothing_left(demo: Demo) -> None:
    """`--seconds 8`: the last line is the contract's JSON, nothing lost or twice, alerts with reasons were shown."""
    process = demo.start("--seconds", "8", "--fraud", "0.05")
    assert process.wait(90) == 0, demo.text
    assert demo.left() == []
    lines = demo.text.strip().splitlines()
    line = json.loads(lines[-1])
    assert list(line) == ["sent", "accepted", "scored", "alerts", "lost", "duplicates", "p50_ms", "p99_ms"]
    assert line["sent"] == line["accepted"] == line["scored"] > 800
    assert (line["lost"], line["duplicates"]) == (0, 0)
    assert 0 < line["p50_ms"] <= line["p99_ms"]
    assert line["alerts"] > 0
    alerts = [text for text in lines if "  [planted: " in text]
    assert alerts
    assert all("score" in text and "expected" in text and " mi " in text and "zones" in text for text in alerts)
    assert "a first trip had its score after" in demo.text
    assert "simulated" in lines[0]
    assert f"http://127.0.0.1:{demo.ports['--port']}/" in demo.text
    assert "\x1b[" not in demo.text


@pytest.mark.slow
def test_ctrl_c_sums_up_and_leaves_nothing(demo: Demo) -> None:
    """Ctrl-C while trips stream: a summary, exit code 0, every process gone."""
    process = demo.start()
    demo.wait_for("[planted: ")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, demo.text
    assert "Summary" in demo.text
    assert "lost 0" in demo.text
    assert demo.left() == []


@pytest.mark.slow
def test_a_killed_demo_takes_its_stack_along(demo: Demo) -> None:
    """kill -9 leaves no broker, API or worker behind."""
    process = demo.start()
    demo.wait_for("stream ")
    assert len(demo.left()) >= 5
    process.kill()
    process.wait()
    wait_until(lambda: not demo.left(), 20, lambda: f"left: {demo.left()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_while_the_stack_starts_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    """Before all is up, Ctrl-C or SIGTERM ends it at once with exit code 130."""
    process = demo.start()
    demo.wait_for("broker ")
    process.send_signal(number)
    assert process.wait(30) == 130, demo.text
    assert "Traceback" not in demo.text
    assert demo.left() == []


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--port", "FRAUDLIB_API_PORT"),
        ("--broker-port", "FRAUDLIB_BROKER_PORT"),
        ("--metrics-port", "FRAUDLIB_METRICS_PORT"),
    ],
)
def test_a_busy_port_is_named_before_anything_starts(demo: Demo, option: str, setting: str) -> None:
    """Port, setting, option and a port that is free: one sentence, exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        demo.ports[option] = port = taken.getsockname()[1]
        process = demo.start()
        assert process.wait(30) == 1, demo.text
    (sentence,) = demo.text.splitlines()
    assert f"port {port} of 127.0.0.1" in sentence
    assert f"set {setting} or {option} to another, such as " in sentence
    assert demo.left() == []


def test_a_service_that_does_not_start_is_shown_with_the_end_of_its_log(demo: Demo, tmp_path: Path) -> None:
    """A bundle that does not verify: the worker's own sentence, exit code 1, nothing left."""
    demo.artifacts = tmp_path / "artifacts"
    (demo.artifacts / "20260101T000000Z-broken").mkdir(parents=True)
    (demo.artifacts / "current").write_text("20260101T000000Z-broken\n")
    process = demo.start()
    assert process.wait(60) == 1, demo.text
    assert "fraudlib worker ended" in demo.text
    assert "manifest.json" in demo.text
    assert "Traceback" not in demo.text
    assert demo.left() == []
