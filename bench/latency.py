"""Latency from POST to score and to alert, at a steady rate of single transactions: prints one JSON object.

Open loop: a transaction counts from the moment that it was due, so that a slow moment is not left out. The reader of
the topics is a process of its own, with the fetch wait of the settings, as any client has it.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psutil
from aiokafka import AIOKafkaConsumer

from bench import metrics, openloop
from fraudlib import paths, trips
from fraudlib.demo import replay
from fraudlib.demo.stack import Stack, free_port
from fraudlib.schema import TOPIC_ALERTS, TOPIC_SCORES
from fraudlib.settings import Settings
from fraudlib.wire.kafka import client_options

SAMPLE: Final = Path("data/sample")
SHARE: Final = 0.05  # planted, so that there are alerts enough for their percentiles
WARM_SECONDS: Final = 3.0
OUTSTANDING_SECONDS: Final = 20.0


def records(count: int, prefix: str) -> tuple[list[str], list[bytes]]:
    """Ids and JSON records of the sample's trips with planted fraud, over and over."""
    columns, _ = replay.plant(trips.to_columns(trips.read(paths.resolve(SAMPLE))), SHARE, 7)
    n = len(columns["trip_distance"])
    rows = np.arange(count) % n
    ids = [f"{prefix}{i}" for i in range(count)]
    return ids, replay.encode({name: column[rows] for name, column in columns.items()}, ids)


def _read(settings: Settings, pipe: Connection) -> None:
    """Body of the reading process: when each score and alert was first seen, until there are as many as it is told."""
    seen: dict[str, dict[str, tuple[float, Any]]] = {TOPIC_SCORES: {}, TOPIC_ALERTS: {}}

    async def read() -> None:
        consumer = AIOKafkaConsumer(
            *seen,
            **client_options(settings),
            auto_offset_reset="latest",
            enable_auto_commit=False,
            fetch_max_wait_ms=settings.fetch_wait_ms,
        )
        await consumer.start()
        await consumer.seek_to_end()
        pipe.send("ready")
        expected, end = None, math.inf
        while time.monotonic() < end and (expected is None or len(seen[TOPIC_SCORES]) < expected):
            if expected is None and pipe.poll():
                expected, end = pipe.recv(), time.monotonic() + OUTSTANDING_SECONDS
            for tp, messages in (await consumer.getmany(timeout_ms=100)).items():
                now, here = time.monotonic(), seen[tp.topic]
                for message in messages:
                    here.setdefault(message.key.decode(), (now, message.value))
        await consumer.stop()

    try:
        import uvloop
    except ImportError:
        asyncio.run(read())
    else:
        uvloop.run(read())
    pipe.send(seen)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p95, p99, most = np.percentile(seconds, (50, 95, 99, 100)) * 1000
    return {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "p99_ms": round(p99, 2), "max_ms": round(most, 1)}


def _hops(due: Mapping[str, float], seen: Mapping[str, tuple[float, Any]]) -> dict[str, float]:
    """Mean milliseconds of each hop; the stamps are whole milliseconds, cut off."""
    offset = time.time() - time.monotonic()
    hops = []
    for name, (at, value) in seen.items():
        score = orjson.loads(value)
        accepted, scored = (
            datetime.fromisoformat(score[key]).timestamp() + 0.0005 for key in ("accepted_at", "scored_at")
        )
        hops.append((accepted - offset - due[name], scored - accepted, at + offset - scored))
    names = ("due_to_taken", "taken_to_scored", "scored_to_read")
    return {f"{name}_ms": round(value, 2) for name, value in zip(names, 1000 * np.mean(hops, axis=0), strict=True)}


def _step(stack: Stack, settings: Settings, rate: float, seconds: float, wait: bool) -> dict[str, Any]:
    prefix = f"latency-{secrets.token_hex(3)}-"
    warm = int(rate * WARM_SECONDS)
    ids, rows = records(warm + int(rate * seconds), prefix)
    headers = {"Prefer": "wait=5"} if wait else {}
    requests = [openloop.post("/transaction", record, "bench", **headers) for record in rows]
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    reader = multiprocessing.get_context("spawn").Process(target=_read, args=(settings, theirs), daemon=True)
    reader.start()
    ours.recv()
    children = {name: psutil.Process(child.pid) for name, child in stack.running.items()}
    before, at_first = _cpu(children), metrics.samples(settings.metrics_port)
    load = openloop.run(settings.api_host, settings.api_port, requests, rate)
    cpu = {name: round((value - before[name]) / (len(ids) / rate), 2) for name, value in _cpu(children).items()}
    cpu["sender"] = round(load.cores, 2)
    ours.send(len(ids))
    at_last = metrics.samples(settings.metrics_port)
    seen = ours.recv()
    reader.join()
    due = dict(zip(ids, load.due, strict=True))
    counted = set(ids[warm:])
    scores, alerts = ({k: v for k, v in seen[topic].items() if k in counted} for topic in (TOPIC_SCORES, TOPIC_ALERTS))
    answered = np.array(load.answered[warm:]) - np.array(load.due[warm:])
    return {
        "rate": rate,
        "transactions": len(counted),
        "scored": len(scores),
        "answered_per_second": round(len(ids) / (np.nanmax(load.answered) - load.due[0]), 1),
        "statuses": load.statuses,
        "answer": _percentiles(answered[~np.isnan(answered)]),
        "score": _percentiles([at - due[name] for name, (at, _) in scores.items()]),
        "alert": _percentiles([at - due[name] for name, (at, _) in alerts.items()]),
        "hops": _hops(due, scores),
        "stages": metrics.stages(at_first, at_last),
        "cores": cpu,
    }


def _cpu(children: Mapping[str, psutil.Process]) -> dict[str, float]:
    """CPU seconds of each service, its children included."""
    return {
        name: sum(sum(p.cpu_times()[:2]) for p in (child, *child.children(recursive=True)))
        for name, child in children.items()
    }


def measure(
    rates: Sequence[float] = (100, 1000, 5000),
    seconds: float = 10.0,
    wait: bool = False,
    rounds: int = 1,
    **changes: Any,
) -> dict[str, Any]:
    """Latencies at each rate, on a stack of its own: of several rounds the one with the median p50 of the score.

    Parameters
    ----------
    rates : transactions a second.
    seconds : how long each rate is held, after three seconds that are not counted.
    wait : let every request ask for its score (`Prefer: wait=5`), and count the answer.
    rounds : how often the rates are gone through.
    changes : of the settings.
    """
    broker, api, metrics = free_port(), free_port(), free_port()
    settings = Settings(
        broker_port=broker,
        kafka_bootstrap_servers=f"127.0.0.1:{broker}",
        api_port=api,
        metrics_port=metrics,
        **changes,
    )
    with tempfile.TemporaryDirectory() as folder, Stack(settings, Path(folder)) as stack:
        for _ in stack.start("broker", "api", "worker"):
            pass
        stack.try_out()
        each = [[_step(stack, settings, rate, seconds, wait) for rate in rates] for _ in range(rounds)]
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    return {"machine": machine, "wait": wait, "steps": [_median(list(of_rate)) for of_rate in zip(*each, strict=True)]}


def _median(steps: list[dict[str, Any]]) -> dict[str, Any]:
    ordered = sorted(steps, key=lambda step: step["score"]["p50_ms"])
    every = {name: [step["score"][name] for step in steps] for name in ("p50_ms", "p99_ms")}
    return ordered[len(ordered) // 2] | {"score_rounds": every}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 1000, 5000], help="transactions a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each rate is held")
    parser.add_argument("--wait", action="store_true", help="every request asks for its score")
    parser.add_argument("--rounds", type=int, default=1, help="how often the rates are gone through")
    options = parser.parse_args()
    print(json.dumps(measure(options.rates, options.seconds, options.wait, options.rounds)))
