"""What the services tell about themselves can be read by Prometheus, by an orchestrator and by a log store."""

import asyncio
import json
import logging
import re
import sys

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fraudlib import paths
from fraudlib.telemetry import ApiMetrics, BulkHistogram, JsonFormatter, RetrainMetrics, WorkerMetrics, serve_health
from fraudlib.worker import main as worker
from fraudlib.worker import watchdog
from fraudlib.worker.gpu import DeviceMetrics


def test_many_observations_count_as_each_would() -> None:
    """A value at a bound belongs to that bucket, as in the client library."""
    registry = CollectorRegistry()
    histogram = BulkHistogram("waits", "waiting times", (0.1, 1.0), registry)
    histogram.observe_many([0.05, 0.1, 0.5])
    histogram.observe_many([2.0])
    samples = {s.labels.get("le", s.name): s.value for metric in registry.collect() for s in metric.samples}
    assert samples == {"0.1": 2, "1.0": 3, "+Inf": 4, "waits_count": 4, "waits_sum": pytest.approx(2.65)}


def test_a_service_can_be_made_twice() -> None:
    """Metrics live in the registry given, not in a global one; both services' text is readable."""
    for _ in range(2):
        registry = CollectorRegistry()
        ApiMetrics(registry)
        WorkerMetrics(registry)
        assert {b"fraudlib_api_backlog", b"fraudlib_worker_rebalances_total"} <= set(generate_latest(registry).split())


def test_a_log_line_is_one_json_object() -> None:
    """With the service, the extra fields, and the trace of an error, whatever characters are in them."""
    try:
        raise ValueError("line\nbreak")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed %s", ("twice",), sys.exc_info())
    record.bundle_id = "b"
    line = JsonFormatter("worker").format(record)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["service"], content["level"], content["message"]) == ("worker", "ERROR", "failed twice")
    assert content["bundle_id"] == "b"
    assert "ValueError" in content["trace"]


async def ask(port: int, request: bytes) -> tuple[int, str]:
    """Status and body of a raw request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return (int(head.split()[1]) if head else 0), body.decode()


def test_health_is_served_beside_the_work() -> None:
    """/healthz, /readyz with what is missing, /metrics; nonsense harms nothing."""

    async def scenario() -> None:
        missing: list[str | None] = ["partitions"]
        registry = CollectorRegistry()
        WorkerMetrics(registry)
        server = await serve_health("127.0.0.1", 0, registry, lambda: missing[0])
        port = server.sockets[0].getsockname()[1]
        assert await ask(port, b"nonsense\r\n\r\n") == (0, "")
        assert (await ask(port, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n"))[0] == 0
        assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 200
        status, body = await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert (status, json.loads(body)["for"]) == (503, "partitions")
        missing[0] = None
        assert (await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n"))[0] == 200
        assert "fraudlib_worker_lag" in (await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\n\r\n"))[1]
        assert (await ask(port, b"GET /elsewhere HTTP/1.1\r\n\r\n"))[0] == 404
        assert (await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n") == (200, "")
        server.close()

    asyncio.run(scenario())


KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram", BulkHistogram: "histogram"}


def described(registry: CollectorRegistry) -> dict[str, tuple[str, set[str]]]:
    """Metric of the project -> its type and labels."""
    found = {}
    for collector in registry._collector_to_names:
        if kind := KINDS.get(type(collector)):
            name = collector._name + ("_total" if kind == "counter" else "")  # type: ignore[attr-defined]
            found[name] = (kind, set(getattr(collector, "_labelnames", ())))
    return found


def test_the_page_of_metrics_lists_every_one_with_its_type_and_labels() -> None:
    """And none that is not there; every label's values are known beforehand."""
    registry = CollectorRegistry()
    ApiMetrics(registry)
    WorkerMetrics(registry)
    DeviceMetrics(registry)
    RetrainMetrics(registry)
    page = (paths.root() / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(fraudlib_(?:api|worker|retrain)_\w+)` \| (\w+) \| (.*?) ?\| \S", page, re.MULTILINE)
    assert {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows} == described(registry)
    known = {"route", "method", "status", "outcome", "verdict", "field", "cause", "partition", "bundle_id", "bound"}
    known |= {"stage", "device", "kind", "flagged_by", "feature"}
    assert set().union(*(labels for _, labels in described(registry).values())) <= known


def test_a_process_says_when_it_started_and_what_it_takes() -> None:
    """Restarts and leaks show without another exporter."""
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    assert (registry.get_sample_value("process_start_time_seconds") or 0) > 0
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 0


def test_what_python_holds_follows_its_objects() -> None:
    """A hundred thousand objects more show as that many blocks, and are gone when they are let go."""
    registry = CollectorRegistry()
    ApiMetrics(registry)
    WorkerMetrics(registry)
    for service in ("api", "worker"):

        def blocks(name: str = f"fraudlib_{service}_python_blocks") -> float:
            return registry.get_sample_value(name) or 0

        before = blocks()
        kept = [object() for _ in range(100_000)]
        assert blocks() - before == pytest.approx(len(kept), rel=0.02)
        del kept
        assert blocks() == pytest.approx(before, abs=2_000)


def test_a_counter_of_known_labels_starts_at_zero() -> None:
    """A rate sees nothing of a counter that appears with its first failure."""
    registry = CollectorRegistry()
    ApiMetrics(registry)
    WorkerMetrics(registry)
    for name, labels in {
        "fraudlib_worker_dead_letters_total": {"cause": "CrashLoop"},
        "fraudlib_worker_failures_total": {"stage": "publish"},
        "fraudlib_worker_reloads_total": {"outcome": "refused"},
        "fraudlib_api_transactions_total": {"outcome": "unknown"},
        "fraudlib_api_labels_total": {"verdict": "honest"},
    }.items():
        assert registry.get_sample_value(name, labels) == 0, name


def test_the_worker_page_lists_every_exit_code() -> None:
    """With the numbers that the worker ends with."""
    page = (paths.root() / "docs" / "worker.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {
        0,
        *(value for name, value in {**vars(worker), **vars(watchdog)}.items() if name.startswith("EXIT_")),
    }
