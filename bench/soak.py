"""Steady load for a long time, with restarts and reloads: `python -m bench.soak`; the last line is one JSON object.

The broker, the API and one worker live from the first minute to the last and are looked at every few seconds: memory,
file descriptors, threads, tasks of the event loop. Beside them a second worker is stopped or killed once a minute, and
another bundle becomes current every 45 s. A reader follows scores and alerts all the while and keeps the ledger.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from scipy import stats
from tqdm import tqdm

from bench import figure, metrics
from bench.ledger import Sender
from bench.machine import describe
from bench.records import Records
from bench.site import Service, Site
from fraudlib import manifest, paths
from fraudlib.errors import ServiceError
from fraudlib.schema import TOPIC_ALERTS, TOPIC_DEAD_LETTERS, TOPIC_SCORES
from fraudlib.wire.delivery import Deduplicator
from fraudlib.wire.topics import reader

BROKER_MEMORY_MB: Final = 128  # full within minutes: what the broker keeps is no leak
DRAIN_SECONDS: Final = 60.0
MIB: Final = 2**20
LOOKED_AT: Final = ("broker", "api", "worker")
OF_PYTHON: Final = ("api", "worker")  # these tell of themselves
PASS_SLOPE: Final = 1.0  # MiB an hour


@dataclass(frozen=True)
class Plan:
    """How long, how much, how often.

    Attributes
    ----------
    minutes : of steady load. rate : transactions a second. warm_share : share of the time before slopes are taken:
    caches fill, the allocator settles. restart_s, reload_s, look_s : between restarts, new bundles, looks.
    """

    minutes: float = 30.0
    rate: float = 400.0
    warm_share: float = 0.4
    restart_s: float = 60.0
    reload_s: float = 45.0
    look_s: float = 2.0


@dataclass
class Looks:
    """What the lasting processes use, look by look."""

    seconds: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    memory_mib: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LOOKED_AT})
    descriptors: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in LOOKED_AT})
    threads: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in LOOKED_AT})
    tasks: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in OF_PYTHON})
    blocks: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in OF_PYTHON})

    def take(self, at: float, sent: int, services: dict[str, Service], ports: dict[str, int]) -> None:
        """Look once, `at` seconds after the start, when `sent` transactions had gone out."""
        self.seconds.append(at)
        self.sent.append(sent)
        for name, service in services.items():
            family = service.family()
            self.memory_mib[name].append(sum(process.memory_info().rss for process in family) / MIB)
            self.descriptors[name].append(sum(process.num_fds() for process in family))
            self.threads[name].append(sum(process.num_threads() for process in family))
        for name, port in ports.items():
            found = metrics.samples(port, f"fraudlib_{name}_")
            self.tasks[name].append(int(found[f"fraudlib_{name}_tasks"]))
            self.blocks[name].append(int(found[f"fraudlib_{name}_python_blocks"]))

    def figures(self, warm: float) -> dict[str, dict[str, Any]]:
        """Slopes after the warm-up, an hour and a million transactions, and whether the counts stayed.

        What grows with the clock and what grows with the load read differently at another rate. Memory (MiB) that
        grows without Python's blocks is the allocator's or native code's.
        """
        late = np.array(self.seconds) >= warm
        hours, millions = np.array(self.seconds)[late] / 3600, np.array(self.sent)[late] / 1e6
        found: dict[str, dict[str, Any]] = {}
        for name in LOOKED_AT:
            # Theil and Sen's slope: a moment's buffer does not tilt it.
            memory = np.array(self.memory_mib[name])[late]
            slope, _, low, high = stats.theilslopes(memory, hours)
            found[name] = {
                "memory_mib": round(float(np.median(memory)), 1),
                "slope_mib_per_hour": round(float(slope), 2),
                "slope_interval": [round(float(low), 2), round(float(high), 2)],
                "slope_mib_per_million": round(float(stats.theilslopes(memory, millions).slope), 2),
            }
            if name in self.blocks:
                blocks = np.array(self.blocks[name])[late]
                found[name]["python_blocks"] = int(np.median(blocks))
                found[name]["python_blocks_per_million"] = round(float(stats.theilslopes(blocks, millions).slope))
            for what, counts in (("descriptors", self.descriptors), ("threads", self.threads), ("tasks", self.tasks)):
                if name in counts:
                    first, last = np.array_split(np.array(counts[name])[late], 2)
                    found[name][what] = [int(np.median(first)), int(np.median(last))]
        return found


class Ledger(threading.Thread):
    """Follows scores, alerts and dead letters through the reader's filter while they come."""

    def __init__(self, site: Site) -> None:
        super().__init__(name="ledger", daemon=True)
        self._site = site
        self.done = threading.Event()
        self.scored: set[str] = set()
        self.flagged: set[str] = set()
        self.alerted: set[str] = set()
        self.found: Counter[str] = Counter()
        self.bundles: set[str] = set()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Body of the thread; what stops it early is kept in `error`."""
        try:
            asyncio.run(self._follow())
        except BaseException as err:
            self.error = err

    async def _follow(self) -> None:
        passes = {TOPIC_SCORES: Deduplicator(), TOPIC_ALERTS: Deduplicator()}
        async with reader(self._site.settings, [*passes, TOPIC_DEAD_LETTERS]) as (consumer, _):
            while not self.done.is_set():
                for tp, messages in (await consumer.getmany(timeout_ms=200)).items():
                    for message in messages:
                        self._note(tp.topic, message.value, passes)

    def _note(self, topic: str, value: bytes, passes: dict[str, Deduplicator]) -> None:
        if topic == TOPIC_DEAD_LETTERS:
            self.found["dead_letters"] += 1
            return
        score = orjson.loads(value)
        if not passes[topic](score["src_partition"], score["src_offset"]):
            self.found["raw_duplicates"] += 1
            return
        key, seen = score["transaction_id"], self.scored if topic == TOPIC_SCORES else self.alerted
        self.found["duplicates"] += key in seen
        seen.add(key)
        self.bundles.add(score["bundle_id"])
        if topic == TOPIC_SCORES and score["is_flagged"]:
            self.flagged.add(key)


def twin(folder: Path) -> list[str]:
    """Names of the live bundle and of a copy under another name, in a new artifacts folder."""
    live = manifest.current_bundle(paths.root() / "artifacts")
    if live is None:
        raise ServiceError("artifacts: no bundle is current; train one with `python -m pipelines retrain`")
    names = [live.name, f"{live.name}-twin"]
    for name in names:
        shutil.copytree(live, folder / name)
        card = json.loads((folder / name / paths.MANIFEST).read_text()) | {"bundle_id": name}
        (folder / name / paths.MANIFEST).write_text(json.dumps(card))
    manifest.set_current(folder, names[0], "soak")
    return names


class Soak:
    """One run."""

    def __init__(self, site: Site, plan: Plan, names: list[str]) -> None:
        self._site, self._plan, self._names = site, plan, names
        self.looks = Looks()
        self.events: list[tuple[float, str]] = []
        self.done: Counter[str] = Counter()
        site.start_broker()
        site.start_api()
        self._lasting = {"broker": site.services[0], "api": site.services[1], "worker": site.start_worker()}
        self._second = site.start("worker")
        self._ledger = Ledger(site)
        total = round(plan.rate * 60 * plan.minutes)
        self._sender = Sender(site, Records(accepted_at=False)(total, "soak-"), total, plan.rate)

    def run(self) -> dict[str, Any]:
        """Load for the whole time, then what is outstanding, then the figures."""
        ports = {"api": self._site.settings.api_port, "worker": self._lasting["worker"].metrics_port}
        started = time.monotonic()
        self._ledger.start()
        self._sender.start()
        restart, reload = self._plan.restart_s, self._plan.reload_s
        bar = tqdm(total=round(60 * self._plan.minutes), unit="s", desc="soak")
        while self._sender.is_alive():
            now = time.monotonic() - started
            self._check()
            self.looks.take(now, self._sender.sent, self._lasting, ports)
            if now >= restart:
                self._restart(now)
                restart += self._plan.restart_s
            if now >= reload:
                self._reload(now)
                reload += self._plan.reload_s
            bar.update(round(now) - bar.n)
            time.sleep(self._plan.look_s)
        bar.close()
        return self._figures(time.monotonic() - started)

    def _check(self) -> None:
        for name, service in self._lasting.items():
            if not service.is_running:
                raise ServiceError(f"{name} ended with exit code {service.process.returncode}")
        for error in (self._sender.error, self._ledger.error):
            if error:
                raise ServiceError(f"the load or the ledger stopped: {error!r}")

    def _restart(self, now: float) -> None:
        """Stop the second worker, by SIGTERM and SIGKILL in turn, and start another."""
        number = signal.SIGKILL if self.done["restarts"] % 2 else signal.SIGTERM
        self._second.stop(number)
        self._site.services.remove(self._second)
        self._second = self._site.start("worker")
        self.done["restarts"] += 1
        self.events.append((now, "restart"))

    def _reload(self, now: float) -> None:
        self.done["reloads"] += 1
        manifest.set_current(self._site.settings.artifacts, self._names[self.done["reloads"] % 2], "soak")
        self.events.append((now, "reload"))

    def _figures(self, seconds: float) -> dict[str, Any]:
        sent, ledger = self._sender, self._ledger
        end = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < end and (sent.acknowledged - ledger.scored or ledger.flagged - ledger.alerted):
            time.sleep(0.2)
        ledger.done.set()
        ledger.join()
        use = self.looks.figures(60 * self._plan.minutes * self._plan.warm_share)
        lost = {
            "lost": len(sent.acknowledged - ledger.scored),
            "duplicates": ledger.found["duplicates"],
            "alerts_lost": len(ledger.flagged - ledger.alerted),
            "dead_letters": ledger.found["dead_letters"],
        }
        counts = [part[what] for part in use.values() for what in ("descriptors", "threads", "tasks") if what in part]
        steady = all(abs(first - last) <= 1 for first, last in counts)
        flat = all(use[name]["slope_mib_per_hour"] < PASS_SLOPE for name in use)
        return {
            "passed": not any(lost.values()) and steady and flat,
            "minutes": round(seconds / 60, 1),
            "sent": sent.sent,
            "acknowledged": len(sent.acknowledged),
            "outcome_unknown": sent.unknown,
            "scored": len(ledger.scored),
            **lost,
            "raw_duplicates": ledger.found["raw_duplicates"],
            "alerts": len(ledger.alerted),
            "bundles_seen": len(ledger.bundles),
            **{name: self.done[name] for name in ("restarts", "reloads")},
            "processes": use,
        }


def soak(
    plan: Plan, draw: Callable[[Looks, list[tuple[float, str]], float], object] = lambda *_: None
) -> dict[str, Any]:
    """Run a plan on a site of its own; `draw` is given the looks, the events and the end of the warm-up in s."""
    with tempfile.TemporaryDirectory(prefix="fraudlib-soak-") as folder:
        names = twin(Path(folder))
        with Site(artifacts_dir=folder, broker_memory_mb=BROKER_MEMORY_MB, state_dir=f"{folder}/state") as site:
            run = Soak(site, plan, names)
            result = run.run()
            draw(run.looks, run.events, 60 * plan.minutes * plan.warm_share)
    return result


def main() -> int:
    """Parse the command line, run, write and print."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = asdict(Plan())
    for name in ("minutes", "rate"):
        parser.add_argument(f"--{name}", type=float, default=defaults[name])
    parser.add_argument("--out", type=Path, help="file of results, such as docs/soak.json; a figure lies beside it")
    options = parser.parse_args()
    plan, machine = Plan(minutes=options.minutes, rate=options.rate), describe()
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # rather than find out after half an hour
    draw = (lambda *a: figure.soak(*a, options.out.with_suffix(".png"))) if options.out else (lambda *_: None)
    result = {"plan": asdict(plan), **soak(plan, draw), "machine": machine}
    if options.out:
        manifest.write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
