"""What the services tell about themselves: Prometheus metrics, one object per service, and JSON log lines.

No label value comes from a user: routes, topics, field names, causes and partitions are all known beforehand.
"""

import asyncio
import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fraudlib.bundle_metrics import BundleMetrics

# "crash" is of an earlier worker.
STAGES: Final = (
    *("connect", "assign", "fetch", "memory", "device", "scoring_process"),
    *("publish", "commit", "crash", "shadow", "drift"),
)
CALM: Final = (50_000, 20, 100)  # objects, and rounds of the younger generation, before the collector comes round
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WAITS: Final = (*SECONDS, 30.0, 60.0, 300.0, 1800.0)
DIFFERENCES: Final = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
RARITIES: Final = (*(step / 4 for step in range(1, 21)), 6.0, 8.0)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class BulkHistogram(Collector):
    """Histogram that takes many observations in one call; the client library's takes a lock for each.

    Parameters
    ----------
    name, text : of the metric.
    bounds : upper bounds of the buckets, ascending.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, np.asarray(bounds, dtype=np.float64)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe_many(self, values: ArrayLike) -> None:
        """Count every value."""
        array = np.asarray(values, dtype=np.float64)
        self._counts += np.bincount(np.searchsorted(self._bounds, array), minlength=len(self._counts))
        self._sum += float(array.sum())

    def collect(self) -> Iterator[Metric]:
        """Current state, for the registry."""
        names = [*(repr(bound) for bound in self._bounds.tolist()), "+Inf"]
        buckets = list(zip(names, self._counts.cumsum().astype(float).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


def _count_blocks(name: str, registry: CollectorRegistry) -> None:
    """Show what Python holds: resident memory that grows while this stays is the allocator's, or another language's."""
    gauge = Gauge(name, "memory blocks that Python holds, of any size", registry=registry)
    gauge.set_function(sys.getallocatedblocks)


def _start(counter: Counter, values: Sequence[str]) -> None:
    """Show every label from the start, at zero: a rate sees nothing of a counter that begins at one."""
    for value in values:
        counter.labels(value)


class ApiMetrics:
    """Metrics of the API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.request = Histogram(
            "fraudlib_api_request_seconds",
            "time to answer a request",
            ["route", "method", "status"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("fraudlib_api_requests_in_flight", "requests being answered", registry=registry)
        self.items = Counter("fraudlib_api_transactions_total", "transactions received", ["outcome"], registry=registry)
        _start(self.items, ("accepted", "invalid", "not_sent", "unknown"))
        self.publish = Histogram(
            "fraudlib_api_publish_seconds", "time to the broker's acknowledgement", buckets=SECONDS, registry=registry
        )
        self.broker_up = Gauge("fraudlib_api_broker_up", "1 while the broker answers", registry=registry)
        self.backlog = Gauge(
            "fraudlib_api_backlog", "transactions that wait for the workers; NaN where unknown", registry=registry
        )
        self.rebuilds = Counter("fraudlib_api_producer_rebuilds_total", "producers replaced", registry=registry)
        self.streams = Gauge("fraudlib_api_alert_streams", "clients that follow GET /alerts", registry=registry)
        self.tasks = Gauge("fraudlib_api_tasks", "tasks of the event loop", registry=registry)
        _count_blocks("fraudlib_api_python_blocks", registry)
        self.labels = Counter("fraudlib_api_labels_total", "labels accepted", ["verdict"], registry=registry)
        _start(self.labels, ("fraud", "honest"))


class WorkerMetrics:
    """Metrics of a worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.bundle = BundleMetrics(registry)
        self.transactions = Counter("fraudlib_worker_transactions_total", "transactions scored", registry=registry)
        self.alerts = Counter(
            "fraudlib_worker_alerts_total", "alerts, by the field that surprised most", ["field"], registry=registry
        )
        self.dead_letters = Counter(
            "fraudlib_worker_dead_letters_total", "messages put aside", ["cause"], registry=registry
        )
        _start(self.dead_letters, ("SchemaError", "ScoreError", "CrashLoop"))
        self.anomaly_score = BulkHistogram("fraudlib_worker_anomaly_score", "scores given", RARITIES, registry)
        self.queue = BulkHistogram(
            "fraudlib_worker_queue_seconds", "from the message's time to the worker taking it", WAITS, registry
        )
        self.batch = Histogram(
            "fraudlib_worker_batch_transactions", "transactions in a micro-batch", buckets=SIZES, registry=registry
        )
        self.score = Histogram(
            "fraudlib_worker_score_seconds", "decode, score and encode one batch", buckets=SECONDS, registry=registry
        )
        self.publish = Histogram(
            "fraudlib_worker_publish_seconds", "publish one batch, acknowledged", buckets=SECONDS, registry=registry
        )
        self.post_to_score = BulkHistogram(
            "fraudlib_worker_post_to_score_seconds",
            "from the message's time, which the API gives it, to its acknowledged score",
            WAITS,
            registry,
        )
        self.lag = Gauge(
            "fraudlib_worker_lag", "messages that wait in an assigned partition", ["partition"], registry=registry
        )
        self.reloads = Counter("fraudlib_worker_reloads_total", "new bundles seen", ["outcome"], registry=registry)
        _start(self.reloads, ("loaded", "refused"))
        self.failures = Counter("fraudlib_worker_failures_total", "failures met", ["stage"], registry=registry)
        _start(self.failures, STAGES)
        self.rebalances = Counter("fraudlib_worker_rebalances_total", "assignments received", registry=registry)
        self.fallbacks = Counter(
            "fraudlib_worker_device_fallbacks_total", "devices left for the CPU", registry=registry
        )
        self.scoring_process = Gauge(
            "fraudlib_worker_scoring_process_up",
            "1 while large batches are scored in a process of their own",
            registry=registry,
        )
        self.loop_lag = BulkHistogram(
            "fraudlib_worker_loop_lag_seconds", "how late the event loop came round", SECONDS, registry
        )
        self.tasks = Gauge("fraudlib_worker_tasks", "tasks of the event loop", registry=registry)
        _count_blocks("fraudlib_worker_python_blocks", registry)
        self._observe(registry)

    def _observe(self, registry: CollectorRegistry) -> None:
        """What is measured on samples, beside the work."""
        self.shadow_bundle = Gauge(
            "fraudlib_worker_shadow_bundle_info", "1 for the bundle in the shadow", ["bundle_id"], registry=registry
        )
        self.shadow_transactions = Counter(
            "fraudlib_worker_shadow_transactions_total", "transactions scored by both bundles", registry=registry
        )
        self.shadow_disagreements = Counter(
            "fraudlib_worker_shadow_disagreements_total",
            "transactions that only one of the bundles flags",
            ["flagged_by"],
            registry=registry,
        )
        _start(self.shadow_disagreements, ("live", "shadow"))
        self.shadow_difference = BulkHistogram(
            "fraudlib_worker_shadow_score_difference",
            "absolute difference of the two bundles' scores",
            DIFFERENCES,
            registry,
        )
        self.drift = Gauge(
            "fraudlib_worker_drift_index",
            "population stability index of a feature against the bundle's reference",
            ["feature"],
            registry=registry,
        )
        self.drift_rows = Gauge(
            "fraudlib_worker_drift_window_transactions", "transactions in the drift window", registry=registry
        )


class RetrainMetrics:
    """Metrics of the schedule. What a run came to is NaN until the first one ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        self.runs = Counter("fraudlib_retrain_runs_total", "runs that ended", ["outcome"], registry=registry)
        _start(self.runs, ("promoted", "shadowed", "refused", "failed", "busy"))
        self.running = Gauge("fraudlib_retrain_running", "1 while a run is under way", registry=registry)
        self.next_run = Gauge(
            "fraudlib_retrain_next_run_timestamp_seconds", "when the next run is due", registry=registry
        )
        self.last_success = Gauge(
            "fraudlib_retrain_last_success_timestamp_seconds",
            "when a run last went through, whatever was decided",
            registry=registry,
        )
        self.last_result = Gauge(
            "fraudlib_retrain_last_result", "1 when the last run went through, 0 when it failed", registry=registry
        )
        self.last_duration = Gauge(
            "fraudlib_retrain_last_duration_seconds", "how long the last run took", registry=registry
        )
        self.model_created = Gauge(
            "fraudlib_retrain_model_created_timestamp_seconds", "when the current bundle was sealed", registry=registry
        )
        self.early_runs = Counter(
            "fraudlib_retrain_early_runs_total", "runs that lasting drift began before their time", registry=registry
        )
        self.fetches = Counter("fraudlib_retrain_fetches_total", "months asked for", ["outcome"], registry=registry)
        _start(self.fetches, ("fetched", "unpublished", "failed"))
        self.drift = Gauge("fraudlib_retrain_drift_index", "drift of the scores as last read", registry=registry)
        self.drift_reads = Counter(
            "fraudlib_retrain_drift_reads_total", "reads of drift", ["outcome"], registry=registry
        )
        _start(self.drift_reads, ("read", "failed"))
        for gauge in (self.last_success, self.last_result, self.last_duration, self.drift):
            gauge.set(float("nan"))

    def ended(self, outcome: str, seconds: float, at: float) -> None:
        """Show a run that ended; one that only found another under way says nothing about the last result.

        Parameters
        ----------
        outcome : promoted, shadowed or refused by the gate, failed, or busy.
        seconds : that it took. at : when it ended, since the epoch.
        """
        self.runs.labels(outcome).inc()
        if outcome == "busy":
            return
        self.last_duration.set(seconds)
        self.last_result.set(outcome != "failed")
        if outcome != "failed":
            self.last_success.set(at)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts (UTC), level, service, logger, message and the extra fields."""

    _standard: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
        "message",
        "asctime",
        "taskName",
        "color_message",  # uvicorn repeats its message in colour
    }

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Line of a record."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in self._standard}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(service: str, level: str) -> None:
    """Log JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The client library logs every refused connection as an error; the services say it once, in their own words.
    # Its debug lines hold whole messages, which belong in no log.
    logging.getLogger("aiokafka").setLevel(logging.INFO if level == "DEBUG" else logging.CRITICAL)


def calm_collector() -> None:
    """Take what is loaded out of the garbage collector's rounds, and make them rarer.

    A batch makes many short-lived objects and no cycles; scanning all of the libraries for them took a third of the
    time per transaction.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*CALM)


def collect_leftovers() -> None:
    """Free at once what a rare event, such as a rebalance, left in cycles: a tenth of a millisecond.

    The calm collector comes round after 50,000 objects, which such leftovers reach in hours; they look like a leak till
    then. One that is not calm comes round by itself.
    """
    if gc.get_threshold() == CALM:
        gc.collect()


async def serve_health(
    host: str, port: int, registry: CollectorRegistry, ready: Callable[[], str | None]
) -> asyncio.Server:
    """Serve /metrics, /healthz and /readyz on a plain socket, for a service without an HTTP framework.

    Parameters
    ----------
    port : 0 picks a free one.
    ready : returns what is missing, None when ready.
    """

    def answer(path: str) -> tuple[str, str, bytes]:
        if path == "/metrics":
            return "200 OK", CONTENT_TYPE, generate_latest(registry)
        if path == "/healthz":
            return "200 OK", "application/json", b'{"status":"alive"}'
        if path == "/readyz":
            missing = ready()
            body = json.dumps({"status": "waiting", "for": missing} if missing else {"status": "ready"}).encode()
            return ("503 Service Unavailable" if missing else "200 OK"), "application/json", body
        return "404 Not Found", "application/json", b'{"status":"not found"}'

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                method, path = head.decode("latin-1").split(" ", 2)[:2]
                status, kind, body = answer(path.split("?")[0])
                if method not in ("GET", "HEAD"):
                    status, kind, body = "405 Method Not Allowed", "application/json", b'{"status":"only GET"}'
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + (b"" if method == "HEAD" else body)
                )
                await writer.drain()
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, host, port, limit=16384)
