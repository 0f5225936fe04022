"""The stack in Docker, as `make compose-test` runs it: up, used, broken, retrained, and gone without a trace."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fraudlib import paths
from tests.integration.conftest import free_port, until

COMMAND = shlex.split(os.environ.get("COMPOSE_TEST", ""))
PORTS = ("API_PORT", "API_DOCS_PORT", "GRAFANA_PORT", "PROMETHEUS_PORT", "KAFKA_PORT")
START_SECONDS = 120.0
TRIP = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}
SAMPLE = "pipelines/params/sample.yaml"
PATIENCE_SECONDS = 300.0
LOST = """
import asyncio, json
from fraudlib.wire import topics
from fraudlib.settings import Settings
s, scored = Settings(), set()
total = asyncio.run(topics.total(s, ["transactions"]))
dead = asyncio.run(topics.total(s, ["transactions.dlq"]))
def seen(m):
    score = json.loads(m.value)
    scored.add((score["src_partition"], score["src_offset"]))
asyncio.run(topics.read_all(s, "scores", seen))
print(json.dumps({"taken": total, "scored": len(scored), "dead": dead}))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMMAND, reason="takes ten minutes and a Docker engine: make compose-test"),
    pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command"),
]


class Stack:
    """The compose project under a name and on ports of its own."""

    def __init__(self) -> None:
        self.shown, self.took = "", 0.0
        self.name = f"fraudlibtest{secrets.token_hex(3)}"
        self.ports = {name: free_port() for name in PORTS}
        self.env = os.environ | {name: str(port) for name, port in self.ports.items()}
        self.env |= {"COMPOSE_PROJECT_NAME": self.name, "TRAFFIC_RATE": "40", "TRAFFIC_FRAUD": "0.05"}

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Standard output of a compose command."""
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=paths.root(), env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def docker(self, *arguments: str) -> str:
        """Standard output of a docker command."""
        return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout

    def inside(self, service: str, *command: str) -> str:
        """Standard output of a command in a service's first container."""
        return self.compose("exec", "-T", service, *command)

    def states(self) -> dict[str, str]:
        """Container -> `running healthy 0`, status, health and exit code."""
        form = "{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}} {{.State.ExitCode}}"
        ids = self.compose("ps", "-a", "-q").split()
        lines = self.docker("inspect", "-f", form, *ids).splitlines() if ids else []
        return {name: state for name, _, state in (line.lstrip("/").partition(" ") for line in lines)}

    def healthy(self) -> bool:
        """Whether all run, are healthy where they say, and what ends by itself ended well."""
        states = self.states()
        return bool(states) and all(
            state.startswith(("running healthy", "running  ")) or state == "exited  0" for state in states.values()
        )

    def wait(self, seconds: float = PATIENCE_SECONDS) -> float:
        """Seconds until everything is healthy."""
        begun = time.monotonic()
        try:
            until(self.healthy, seconds)
        except AssertionError:
            logs = self.compose("logs", "--tail=30", check=False)
            raise AssertionError(f"{self.states()}\n{logs[-6000:]}") from None
        return time.monotonic() - begun

    def get(self, port: str, path: str, key: str | None = None, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of a request."""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[port]}{path}", data, given)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                status, raw = response.status, response.read().decode()
        except urllib.error.HTTPError as err:
            status, raw = err.code, err.read().decode()
        except OSError:
            return 0, ""
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def query(self, expression: str) -> float:
        """Value of a PromQL expression, summed; NaN where there is none."""
        _, found = self.get("PROMETHEUS_PORT", f"/api/v1/query?query={urllib.request.quote(f'sum({expression})')}")
        result = found["data"]["result"]
        return float(result[0]["value"][1]) if result else float("nan")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The stack, up and healthy within two minutes, and gone at the end."""
    stack = Stack()
    stack.compose("build", *shlex.split(os.environ.get("COMPOSE_BUILD_ARGS", "")), "api", "worker", "init")
    try:
        begun = time.monotonic()
        command = [paths.root() / "docker" / "up.sh"]
        env = stack.env | {"COMPOSE": shlex.join(COMMAND), "UP_SECONDS": str(int(PATIENCE_SECONDS))}
        started = subprocess.run(command, env=env, cwd=paths.root(), capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stdout + started.stderr
        stack.shown, stack.took = started.stdout, time.monotonic() - begun
        yield stack
    finally:
        stack.compose("--profile", "demo", "down", "-v", "--remove-orphans", "-t", "5", check=False)


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """The key that the first start made."""
    return stack.inside("api", "cat", "keys/stack").strip()


def score(stack: Stack, key: str, trip: dict[str, Any]) -> dict[str, Any]:
    """Score of a trip, sent through the API."""

    def ask() -> Any:
        status, answer = stack.get("API_PORT", "/transaction", key, trip, Prefer="wait=10")
        return answer if status == 200 else None

    return dict(until(ask, 60, "a score"))


def serving(stack: Stack, key: str, bundle: str) -> Callable[[], bool]:
    """Whether a new score is of this bundle."""
    return lambda: score(stack, key, TRIP)["bundle_id"] == bundle


def test_it_is_up_within_two_minutes_and_says_where(stack: Stack, key: str) -> None:
    """`make up` waits for health, then prints every address, the key and Grafana's password."""
    assert stack.took < START_SECONDS
    password = stack.inside("grafana", "cat", "/run/grafana-secret/password").strip()
    addresses = [f"http://127.0.0.1:{stack.ports[name]}/" for name in PORTS if name != "KAFKA_PORT"]
    assert [text for text in (*addresses, key, password) if text not in stack.shown] == []


def test_a_trip_is_scored_and_strangers_stay_out(stack: Stack, key: str) -> None:
    """With the key a trip has its score from the committed bundle; without one the answer is 401."""
    answer = score(stack, key, TRIP)
    assert answer["bundle_id"] == (paths.root() / "artifacts" / "current").read_text().strip()
    assert stack.get("API_PORT", "/transaction", None, TRIP)[0] == 401
    assert stack.get("API_PORT", "/metrics")[0] in (401, 404)
    assert "fraudlib_api" in stack.get("API_DOCS_PORT", "/metrics")[1]


def test_the_topics_have_their_partitions(stack: Stack) -> None:
    """The start made every topic with the same number of partitions."""
    lines = stack.inside("scheduler", "fraudlib", "topics").splitlines()
    assert lines == [f"{t}: 4 partitions" for t in ("transactions", "scores", "alerts", "transactions.dlq", "labels")]


def test_containers_run_without_rights(stack: Stack) -> None:
    """No root, no writable root filesystem, and no way to the internet from the worker; torch is not in the API."""
    for service in ("api", "worker", "scheduler"):
        assert stack.inside(service, "id", "-u").strip() == "10001"
        assert "Read-only" in stack.inside(service, "sh", "-c", "touch /srv/fraudlib/x 2>&1 || true")
    assert "no torch" in stack.inside("api", "sh", "-c", "python -c 'import torch' 2>/dev/null || echo no torch")
    reach = """
import socket
for place in (("redpanda", 9092), ("1.1.1.1", 53)):
    try:
        socket.create_connection(place, 3)
        print("open")
    except OSError:
        print("closed")
"""
    assert stack.inside("worker", "python", "-c", reach).split() == ["open", "closed"]
    worker = next(name for name in stack.states() if "worker" in name)
    (network,) = json.loads(stack.docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", worker))
    assert stack.docker("network", "inspect", "-f", "{{.Internal}}", network).strip() == "true"


def test_grafana_has_a_password_of_its_own(stack: Stack) -> None:
    """It is random, stays when the start runs again, and Grafana answers."""
    before = stack.inside("grafana", "cat", "/run/grafana-secret/password").strip()
    assert len(before) >= 24
    stack.compose("up", "-d")
    stack.wait()
    assert stack.inside("grafana", "cat", "/run/grafana-secret/password").strip() == before
    assert stack.get("GRAFANA_PORT", "/api/health")[0] == 200


def test_the_demo_shows_alerts_with_reasons_within_a_minute(stack: Stack, key: str) -> None:
    """Trips flow with planted fraud, and alerts say why in dollars, miles and minutes."""
    stack.compose("--profile", "demo", "up", "-d")
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.ports['API_PORT']}/alerts", headers={"Authorization": f"Bearer {key}"}
    )
    alerts: list[dict[str, Any]] = []
    end = time.monotonic() + 60
    with urllib.request.urlopen(request, timeout=60) as stream:
        while len(alerts) < 5 and time.monotonic() < end:
            line = stream.readline().decode()
            if line.startswith("data: {"):
                alerts.append(json.loads(line[6:]))
    assert len(alerts) == 5
    assert all(alert["is_flagged"] and alert["anomaly_score"] > alert["threshold"] for alert in alerts)
    said = [reason for alert in alerts for reason in alert["reasons"][:1]]
    assert len(said) >= 4
    assert all({"field", "observed", "expected"} <= reason.keys() for reason in said)


def test_prometheus_sees_every_service(stack: Stack) -> None:
    """All that it is told to scrape is up, each worker by itself."""
    stack.compose("up", "-d", "--no-recreate", "--scale", "worker=3")
    stack.wait()
    until(lambda: stack.query('up{job="worker"}') == 3, 60, "three workers in Prometheus")
    assert stack.query('up{job="api"}') == 1


def test_a_killed_worker_and_a_restarted_api_lose_nothing(stack: Stack, key: str) -> None:
    """Under load a worker dies by SIGKILL and comes back, the API restarts, and every trip that was taken is scored."""
    victim = next(name for name in stack.states() if "worker" in name)
    starts = "{{.RestartCount}}"
    before = int(stack.docker("inspect", "-f", starts, victim))
    subprocess.run(["docker", "exec", victim, "sh", "-c", "kill -9 -1"], check=False)
    until(lambda: int(stack.docker("inspect", "-f", starts, victim)) > before, 30, "a new start")
    stack.compose("restart", "api")
    stack.wait()
    score(stack, key, TRIP)
    stack.compose("rm", "--stop", "--force", "traffic")

    def counts() -> dict[str, int]:
        return dict(json.loads(stack.inside("scheduler", "python", "-c", LOST)))

    until(lambda: (now := counts())["scored"] + now["dead"] == now["taken"], 120, "everything scored")
    assert counts()["dead"] == 0
    assert counts()["taken"] > 500


def test_a_promotion_reaches_the_worker_and_outlives_a_restart(stack: Stack, key: str) -> None:
    """Workers follow what the scheduler's container retrains and promotes; a restart keeps it, a rollback undoes it."""
    default = (paths.root() / "artifacts" / "current").read_text().strip()
    printed = stack.inside("scheduler", "python", "-m", "pipelines", "retrain", "--params", SAMPLE)
    outcome = json.loads(printed.strip().splitlines()[-1])
    # Learned from simulated trips, so that the gate leaves the last word to a person.
    assert outcome["bundle_id"], outcome
    stack.inside("scheduler", "python", "-m", "pipelines", "promote", outcome["bundle_id"])
    until(serving(stack, key, outcome["bundle_id"]), 30, "the new bundle")
    # One after the other, so that somebody scores all the time.
    for name in [name for name in stack.states() if "worker" in name]:
        stack.docker("restart", "-t", "30", name)
        stack.wait()
    stack.compose("up", "-d", "--no-recreate", "--scale", "worker=3")
    stack.wait()
    until(serving(stack, key, outcome["bundle_id"]), 30, "the new bundle after a restart")
    assert stack.inside("scheduler", "python", "-m", "pipelines", "rollback").split()[0] == default
    until(serving(stack, key, default), 30, "the default bundle again")


def test_nothing_is_left(stack: Stack) -> None:
    """After `down -v` there is no container, volume or network of the stack; services end in order, not by SIGKILL."""
    stack.compose("stop", "api", "worker", "scheduler")
    ended = {name: state for name, state in stack.states().items() if any(s in name for s in ("api", "worker"))}
    assert len(ended) == 4
    logs = stack.compose("logs", "--tail=20", "worker", check=False)
    assert all(state.startswith("exited") and state.endswith(" 0") for state in ended.values()), f"{ended}\n{logs}"
    stack.compose("--profile", "demo", "down", "-v", "--remove-orphans")
    label = f"label=com.docker.compose.project={stack.name}"
    for kind in (["ps", "-a"], ["volume", "ls"], ["network", "ls"]):
        assert stack.docker(*kind, "-q", "--filter", label) == ""
