"""The services speak with their broker and with whoever asks them; nobody else is called, and no name is looked up."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fraudlib import paths
from fraudlib.demo.stack import Stack, free_port
from fraudlib.settings import Settings

# Loaded by every Python that starts with its folder on the path, children of the services too. What uvloop opens raises
# no event, so the services run on asyncio's own loop here; they choose it where uvloop is missing. Native code raises
# none either: against that stands the containers' network.
WATCH = """
import json, os, sys
sys.modules["uvloop"] = None
seen = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        place = arguments[1]
        place = list(place[:2]) if isinstance(place, tuple) else ["unix", str(place)]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        place = [str(arguments[0]), None]
    elif event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"):
        place = [str(arguments[0]), None]
    else:
        return
    os.write(seen, (json.dumps([sys.argv[-1], event, *place]) + "\\n").encode())
sys.addaudithook(watch)
"""
HERE = {"127.0.0.1", "::1", "localhost", sys.executable}
CALLS = """
import socket, subprocess
try:
    socket.create_connection(("192.0.2.1", 9), 0.01)
except OSError:
    pass
subprocess.run(["true"])
"""

Call = tuple[str, str, str, int | None]


def read(path: Path) -> list[Call]:
    """(Last word of the command line, event, host or program, port) of each call seen."""
    return [(name, event, place, port) for name, event, place, port in map(json.loads, path.read_text().splitlines())]


def strange(calls: list[Call]) -> list[Call]:
    """Calls beyond this machine, and programs that are started, but for this Python, which is watched too."""
    return [call for call in calls if call[2] not in HERE]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """File with the calls of every Python that a test starts."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def test_a_call_abroad_would_be_seen(seen: Path) -> None:
    """A connection, a name looked up and a program that is started all count."""
    subprocess.run([sys.executable, "-c", CALLS], check=True)
    events = [(event, place) for _, event, place, _ in strange(read(seen))]
    assert ("socket.connect", "192.0.2.1") in events
    assert ("socket.getaddrinfo", "192.0.2.1") in events
    assert ("subprocess.Popen", "true") in events


def test_the_services_call_nobody_but_the_broker(seen: Path, tmp_path: Path) -> None:
    """From the start through a score to the end, they connect to the broker's port and to nothing else."""
    broker = free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=free_port(),
        metrics_port=free_port(),
        state_dir=tmp_path / "state",
        artifacts_dir=paths.root() / "artifacts",
    )
    with Stack(settings, tmp_path / "logs") as stack:
        for _ in stack.start("broker", "api", "worker"):
            pass
        stack.try_out()
    calls = read(seen)
    assert strange(calls) == []
    reached = {(name, port) for name, event, _, port in calls if event == "socket.connect"}
    # The broker asks its own port whether it is up.
    assert reached == {(name, broker) for name in ("api", "worker", "broker")}
