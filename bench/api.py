"""Transactions a second of POST /transactions in one process, against an endpoint that only reads: prints one JSON.

The API sends to the embedded broker and waits for its acknowledgements; no worker runs. The senders are threads of
this process that replay ready bodies, so that the API has a core to itself where there are two.
"""

import argparse
import http.client
import json
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psutil
import uvicorn

from bench.latency import records
from fraudlib.api.deadlines import Protocol
from fraudlib.demo.stack import Stack, answers, free_port
from fraudlib.settings import Settings

MEDIA: Final = {"ndjson": "application/x-ndjson", "array": "application/json"}
THREE_FIELDS: Final = b'{"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15}'
NO_OP: Final = "no-op"
CLOCK_TICK: Final = 0.01  # seconds; processor time is counted in these


async def read_only(scope: Any, receive: Any, send: Any) -> None:
    """ASGI app that reads a body to its end and answers with nothing."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"2"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def serve_read_only(port: int) -> None:
    """Serve `read_only` as the API is served, until it is killed."""
    uvicorn.run(read_only, port=port, http=Protocol, ws="none", log_config=None, lifespan="off", server_header=False)


def _bodies(kind: str, lines: Sequence[bytes], per_request: int) -> list[bytes]:
    parts = [lines[i : i + per_request] for i in range(0, len(lines), per_request)]
    return [b"\n".join(part) if kind == "ndjson" else b"[" + b",".join(part) + b"]" for part in parts]


def _post(port: int, kind: str, bodies: Sequence[bytes]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for body in bodies:
        connection.request("POST", "/transactions", body, {"Content-Type": MEDIA[kind]})
        response = connection.getresponse()
        content = response.read()
        if response.status != 202:
            raise RuntimeError(f"expected 202, found {response.status}: {content[:200]!r}")
    connection.close()


def _rate(port: int, process: psutil.Process, kind: str, bodies: list[bytes], count: int, clients: int) -> Any:
    """Items a second, by the clock and by the server's own processor time."""
    _post(port, kind, bodies[:1])
    shares = [bodies[i::clients] for i in range(clients)]
    cpu, started = sum(process.cpu_times()[:2]), time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(lambda share: _post(port, kind, share), shares))
    seconds, cpu = time.perf_counter() - started, sum(process.cpu_times()[:2]) - cpu
    return {"per_second": round(count / seconds), "per_cpu_second": round(count / max(cpu, CLOCK_TICK))}


def measure(
    items: int = 200_000, per_request: int = 5000, clients: int = 2, rounds: int = 1, **changes: Any
) -> dict[str, Any]:
    """Rates for full TLC records as NDJSON and as arrays, and for three fields, each beside the no-op endpoint.

    Parameters
    ----------
    items : in each measurement. per_request : items in one body. clients : connections at once.
    rounds : how often everything is measured in turn; the medians of the rounds are returned.
    changes : of the settings.
    """
    broker, api, idle = free_port(), free_port(), free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=api,
        max_lag=2**60,
        **changes,
    )
    _, full = records(items, f"api-{secrets.token_hex(3)}-")
    loads = {
        "ndjson": ("ndjson", _bodies("ndjson", full, per_request)),
        "array": ("array", _bodies("array", full, per_request)),
        "ndjson, three fields": ("ndjson", _bodies("ndjson", [THREE_FIELDS] * items, per_request)),
    }
    found: dict[str, list[dict[str, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, Stack(settings, Path(folder)) as stack:
        for _ in stack.start("broker", "api"):
            pass
        server = stack.spawn([sys.executable, "-m", "bench.api", "--serve-no-op", str(idle)])
        while not answers("127.0.0.1", idle, None):
            time.sleep(0.05)
        places = {"api": (api, stack.running["api"]), NO_OP: (idle, server)}
        try:
            for _ in range(rounds):
                for name, (kind, bodies) in loads.items():
                    for place, (port, process) in places.items():
                        rate = _rate(port, psutil.Process(process.pid), kind, bodies, items, clients)
                        found.setdefault(f"{name}|{place}", []).append(rate)
        finally:
            server.kill()
            server.wait()
    return {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "items": items,
        "per_request": per_request,
        "bytes_per_item": {name: round(len(b"".join(bodies)) / items) for name, (_, bodies) in loads.items()},
        "loads": {name: _summary(found[f"{name}|api"], found[f"{name}|{NO_OP}"]) for name in loads},
    }


def _summary(api: list[dict[str, int]], no_op: list[dict[str, int]]) -> dict[str, Any]:
    def median(rates: list[dict[str, int]], name: str) -> int:
        return sorted(rate[name] for rate in rates)[len(rates) // 2]

    out = {name: median(api, name) for name in ("per_second", "per_cpu_second")}
    none = {name: median(no_op, name) for name in ("per_second", "per_cpu_second")}
    return {**out, "no_op": none, "ratio": round(out["per_second"] / none["per_second"], 3)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000, help="items in each measurement")
    parser.add_argument("--per-request", type=int, default=5000, help="items in one body")
    parser.add_argument("--clients", type=int, default=2, help="connections at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured in turn")
    parser.add_argument("--serve-no-op", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_no_op:
        serve_read_only(options.serve_no_op)
    else:
        print(json.dumps(measure(options.items, options.per_request, options.clients, options.rounds)))
