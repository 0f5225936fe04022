"""What a worker's /metrics say: where the time of a batch goes."""

import contextlib
import http.client
from typing import Any, Final

PREFIX: Final = "fraudlib_worker_"


def samples(port: int, prefix: str = PREFIX) -> dict[str, float]:
    """Samples of the service on a port of this machine whose name starts so."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith(prefix))
    return {name: float(value) for name, value in pairs}


def stages(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Mean wait of a transaction in the queue, and mean batch, scoring and publishing, between two looks."""

    def mean(name: str) -> float:
        total, count = (
            after.get(f"{PREFIX}{name}_{end}", 0.0) - before.get(f"{PREFIX}{name}_{end}", 0.0)
            for end in ("sum", "count")
        )
        return total / count if count else 0.0

    return {
        "queue_ms": round(1000 * mean("queue_seconds"), 2),
        "batch_transactions": round(mean("batch_transactions"), 1),
        "score_batch_ms": round(1000 * mean("score_seconds"), 2),
        "publish_batch_ms": round(1000 * mean("publish_seconds"), 2),
    }
