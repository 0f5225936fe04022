"""What the services tell about themselves can be read by Prometheus, by an orchestrator and by a log store."""

import asyncio
import json
import logging
import re
import sys

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from fraudlib import paths, watchdog, worker
from fraudlib.telemetry import ApiMetrics, BulkHistogram, JsonFormatter, WorkerMetrics, serve_health


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
        WorkerMetrics(registry).show_bundle("b")
        assert b'fraudlib_worker_bundle_info{bundle_id="b"} 1.0' in generate_latest(registry)


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


def families() -> dict[str, set[str]]:
    """Metric of the worker -> its labels."""
    registry, labels = CollectorRegistry(), dict[str, set[str]]()
    metrics = WorkerMetrics(registry)
    for metric in vars(metrics).values():
        if hasattr(metric, "_labelnames"):
            suffix = "_total" if isinstance(metric, Counter) else ""
            labels[metric._name + suffix] = set(metric._labelnames)
        elif isinstance(metric, BulkHistogram):
            labels[metric._name] = set()
    return labels


def test_the_worker_page_lists_every_metric_with_its_labels() -> None:
    """And none that is not there; every label's values are known beforehand."""
    page = (paths.root() / "docs" / "worker.md").read_text()
    rows = re.findall(r"^\| `(fraudlib_worker_\w+)` \| (?:`(\w+)`)? ?\|", page, re.MULTILINE)
    assert {name: {label} - {""} for name, label in rows} == families()
    known = {"field", "cause", "partition", "bundle_id", "outcome", "stage", "flagged_by", "feature"}
    assert set().union(*families().values()) <= known


def test_the_worker_page_lists_every_exit_code() -> None:
    """With the numbers that the worker ends with."""
    page = (paths.root() / "docs" / "worker.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {
        0,
        *(value for name, value in {**vars(worker), **vars(watchdog)}.items() if name.startswith("EXIT_")),
    }
