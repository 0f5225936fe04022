"""Transactions a second: workers with and without a scoring process, the ceiling of their client, and a naive worker.

Each drains the same backlog from the same broker on this machine; rounds alternate, so that a change of the machine's
load meets all of them.
"""

import asyncio
import signal
import statistics
from dataclasses import dataclass
from typing import Any, Final

from bench import metrics, topic
from bench.records import Records
from bench.site import Service, Site
from fraudlib.schema import TOPIC_DEAD_LETTERS, TOPIC_SCORES
from fraudlib.wire import topics

COMMANDS: Final = {
    "ceiling": ("-m", "bench.contenders", "ceiling"),
    "naive": ("-m", "bench.contenders", "naive"),
    "trivial": ("-m", "bench.trivial"),
    "worker": None,
}
RUNS: Final[dict[str, dict[str, Any]]] = {
    "ceiling": {"contender": "ceiling"},
    "worker": {},
    "one_process": {"process": "off"},
    "trivial_scorer": {"contender": "trivial"},
    "two_workers": {"workers": 2, "process": "off"},
}
OUTPUTS: Final = (TOPIC_SCORES, TOPIC_DEAD_LETTERS)
SECONDS: Final = 120.0


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes
    ----------
    backlog : transactions that wait. naive : transactions for the naive worker. rounds : repetitions.
    """

    backlog: int = 500_000
    naive: int = 1_500
    rounds: int = 3


class Arena:
    """A broker with a backlog; every contender drains it under a group of its own."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._site, self._plan = site, plan
        self._broker = site.start_broker()
        asyncio.run(topic.fill(site.settings, Records()(plan.backlog, "bench-")))
        self._runs = 0

    def run(self, count: int, workers: int = 1, contender: str = "worker", process: str = "start") -> dict[str, Any]:
        """Drain `count` transactions; rates in transactions/s, costs in microseconds per transaction.

        Parameters
        ----------
        process : `FRAUDLIB_SCORE_PROCESS`; "start" has it ready, as on a worker that has been busy for some seconds.
        """
        self._runs += 1
        before = asyncio.run(topics.total(self._site.settings, OUTPUTS))
        changes = {"consumer_group": f"bench-{self._runs}", "score_process": process}
        crew = [self._site.start(contender, COMMANDS[contender], **changes) for _ in range(workers)]
        for worker in crew:
            self._site.wait_for(worker, "partitions assigned")
        at_start = [s.cpu_seconds() for s in (self._broker, *crew)]
        curve = asyncio.run(topic.watch(self._site.settings, OUTPUTS, before, count, SECONDS))
        used = [s.cpu_seconds() - since for s, since in zip((self._broker, *crew), at_start, strict=True)]
        result = {
            "transactions": curve.count,
            "seconds": round(curve.seconds, 2),
            "per_second": round(curve.per_second),
            "worker_cpu_us": round(1e6 * sum(used[1:]) / curve.count, 2),
            "broker_cpu_us": round(1e6 * used[0] / curve.count, 2),
        }
        if contender not in ("ceiling", "naive"):
            result |= _split(crew, curve.count)
        for worker in crew:
            worker.stop(signal.SIGKILL)
        return result


def _split(crew: list[Service], count: int) -> dict[str, Any]:
    """Where a batch's time goes, from the workers' own metrics: wall time in microseconds per transaction."""
    each = [metrics.samples(worker.metrics_port) for worker in crew]

    def added(name: str) -> float:
        return sum(samples[f"{metrics.PREFIX}{name}"] for samples in each)

    return {
        "batch_mean": round(added("batch_transactions_sum") / max(1.0, added("batch_transactions_count"))),
        "score_wall_us": round(1e6 * added("score_seconds_sum") / count, 2),
        "publish_wall_us": round(1e6 * added("publish_seconds_sum") / count, 2),
        "shares": [round(samples[f"{metrics.PREFIX}transactions_total"] / count, 3) for samples in each],
    }


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median rate, and the rates of all."""
    ordered = sorted(runs, key=lambda run: run["per_second"])
    return ordered[len(ordered) // 2] | {"per_second_of_each_round": [run["per_second"] for run in runs]}


def measure(plan: Plan) -> dict[str, Any]:
    """Every contender's median run, and the ratios of the worker to the others."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(plan.rounds):
        # A broker of its own for each round: it keeps everything in memory.
        with Site() as site:
            arena = Arena(site, plan)
            if not runs:
                naive = arena.run(plan.naive, contender="naive")
            for name, how in RUNS.items():
                runs.setdefault(name, []).append(arena.run(plan.backlog, **how))
    found = {name: _median(each) for name, each in runs.items()} | {"naive": naive}
    return found | {"ratios": _ratios(runs, naive["per_second"])}


def _ratios(runs: dict[str, list[dict[str, Any]]], naive: float) -> dict[str, float]:
    """Medians of the ratios within each round, as both sides of one met the same load."""

    def ratio(above: str, below: str) -> float:
        pairs = zip(runs[above], runs[below], strict=True)
        return round(statistics.median(a["per_second"] / b["per_second"] for a, b in pairs), 3)

    return {
        "worker_to_ceiling": ratio("worker", "ceiling"),
        "trivial_scorer_to_ceiling": ratio("trivial_scorer", "ceiling"),
        "one_process_to_ceiling": ratio("one_process", "ceiling"),
        "two_workers_to_ceiling": ratio("two_workers", "ceiling"),
        "two_workers_to_one": ratio("two_workers", "one_process"),
        "worker_to_naive": round(statistics.median(run["per_second"] for run in runs["worker"]) / naive),
    }
