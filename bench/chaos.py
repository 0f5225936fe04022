"""Faults under load, and the ledger afterwards: `python -m bench.chaos`; the last line is one JSON object.

Real broker, API and workers. Workers are killed by SIGKILL, paused by SIGSTOP until the group has dropped them, added
and drained; the API is killed right after answers; the broker is paused for less and for more than a client waits.
The embedded broker keeps its log in memory, so it is paused and never killed.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.ledger import Audit, Sender
from bench.machine import describe
from bench.records import Records
from bench.site import Service, Site, until
from fraudlib.errors import ServiceError

SESSION_MS: Final = 3000
ZOMBIE_SECONDS: Final = 5.0  # longer than the session
SLOW_SECONDS: Final = 2.0  # shorter than any client's patience
DOWN_SECONDS: Final = 12.0  # longer than a send, a session and a fetch
DRAIN_SECONDS: Final = 120.0
SLOWEST: Final = 100.0  # transactions/s


@dataclass(frozen=True)
class Plan:
    """What to inflict.

    Attributes
    ----------
    transactions : sent in all. seconds : that the faults are expected to take; the load is spread over their real time.
    workers : that run side by side. kills, zombies, api_kills : how many. scalings : 1 to 3 to 1 workers.
    slow, down : pauses of the broker. command : of a worker, the real one by default.
    """

    transactions: int = 400_000
    seconds: float = 300.0
    workers: int = 3
    kills: int = 100
    zombies: int = 6
    scalings: int = 2
    api_kills: int = 10
    slow: int = 3
    down: int = 2
    command: tuple[str, ...] = ()
    seed: int = 7


class Crew:
    """Workers under a supervisor that starts a new one for each that ended."""

    def __init__(self, site: Site, command: tuple[str, ...]) -> None:
        self._site, self._command = site, list(command) or None
        self.size = 0
        self.members: list[Service] = []
        self.own_exits: Counter[int] = Counter()

    def supervise(self) -> None:
        """Replace who is gone, up to the crew's size."""
        for member in [m for m in self.members if not m.is_running]:
            self.own_exits[member.process.returncode] += 1
            self.members.remove(member)
        while len(self.members) < self.size:
            self.members.append(self._site.start("worker", self._command))

    def at_work(self) -> list[Service]:
        """Members that have had partitions."""
        self.supervise()
        return [m for m in self.members if m.says("partitions assigned")]

    def remove(self, member: Service) -> None:
        """Take one out of the supervisor's care."""
        self.members.remove(member)

    def ready(self, count: int | None = None) -> list[Service]:
        """Wait until so many, all by default, have had partitions."""
        wanted = self.size if count is None else count
        until(lambda: len(self.at_work()) >= wanted, why=f"{wanted} workers with partitions")
        return self.at_work()


class Chaos:
    """One run of a plan on a site whose broker and API are up."""

    def __init__(self, site: Site, plan: Plan, say: Callable[[str], object]) -> None:
        self._site, self._plan, self._say = site, plan, say
        self._random = random.Random(plan.seed)
        self._crew = Crew(site, plan.command)
        self._broker, self._api = site.start_broker(), site.start_api()
        records = Records(accepted_at=False)(plan.transactions, "chaos-")
        self._sender = Sender(site, records, plan.transactions, plan.transactions / plan.seconds)
        self.done: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        """Inflict everything, let the rest drain, and audit."""
        started = time.monotonic()
        self._crew.size = self._plan.workers
        self._crew.ready()
        self._sender.start()
        faults = self._faults()
        for number, fault in enumerate(faults, 1):
            self._crew.supervise()
            fault()
            self._check()
            self._spread(number / len(faults), time.monotonic() - started)
        self._say("the last faults are over; what is left is sent and drained")
        self._sender.hurry.set()
        self._crew.ready(1)
        while self._sender.is_alive():
            self._crew.supervise()
            self._sender.join(0.2)
        self._check()
        audit = self._audit()
        return {
            **{name: self.done[name] for name in ("kills", "zombies", "scalings", "api_kills", "slow", "down")},
            "sent": self._sender.sent,
            "acknowledged": len(self._sender.acknowledged),
            "outcome_unknown": self._sender.unknown,
            **audit.against(self._sender.acknowledged),
            "own_exits": {str(code): count for code, count in self._crew.own_exits.items()},
            "seconds": round(time.monotonic() - started, 1),
        }

    def _spread(self, done: float, seconds: float) -> None:
        """Set the rate so that the load lasts as long as the faults do, however fast this machine is."""
        left = seconds * (1 - done) / done
        self._sender.rate = max(SLOWEST, (self._sender.total - self._sender.sent) / max(left, 1.0))

    def _check(self) -> None:
        if self._sender.error:
            raise ServiceError(f"the sender stopped: {self._sender.error!r}")

    def _faults(self) -> list[Callable[[], None]]:
        """Rounds of kills, with the other faults spread among them at random places."""
        plan = self._plan
        rounds: list[Callable[[], None]] = [self._kill_round] * (plan.kills // max(1, plan.workers))
        if rest := plan.kills % max(1, plan.workers):
            rounds.append(lambda: self._kill_round(rest))
        others: list[Callable[[], None]] = [self._zombie] * plan.zombies + [self._scale] * plan.scalings
        others += [self._kill_api] * plan.api_kills + [self._pause_slow] * plan.slow + [self._pause_down] * plan.down
        for fault in others:
            rounds.insert(self._random.randint(0, len(rounds)), fault)
        return rounds

    def _kill_round(self, count: int | None = None) -> None:
        """Kill every worker, one after the other at random moments of its work."""
        for member in self._crew.ready()[:count]:
            time.sleep(self._random.uniform(0.0, 0.4))
            if member.is_running:
                self._crew.remove(member)
                member.stop(signal.SIGKILL)
                self.done["kills"] += 1
            self._crew.supervise()
        self._say(f"{self.done['kills']} workers killed, {len(self._sender.acknowledged):,} transactions acknowledged")

    def _zombie(self) -> None:
        """Pause a worker until the group has gone on without it, then wake it."""
        member = self._random.choice(self._crew.ready(1))
        member.send(signal.SIGSTOP)
        time.sleep(ZOMBIE_SECONDS)
        member.send(signal.SIGCONT)
        self.done["zombies"] += 1
        self._say("a paused worker was woken after the group had dropped it")

    def _scale(self) -> None:
        """From as many as there are to one, to three, to one, by SIGTERM, under load; then as before."""
        size = self._crew.size
        for target in (1, 3, 1):
            self._crew.size = target
            for member in self._crew.members[target:]:
                self._crew.remove(member)
                member.send(signal.SIGTERM)
            self._crew.ready()
            time.sleep(1.0)
        self._crew.size = size
        self._crew.supervise()
        self.done["scalings"] += 1
        self._say("workers went 1 to 3 to 1")

    def _kill_api(self) -> None:
        """Kill the API at a random moment among its answers, and start it again."""
        before = len(self._sender.acknowledged)
        until(
            lambda: len(self._sender.acknowledged) > before or not self._sender.is_alive(), why="an answer of the API"
        )
        time.sleep(self._random.uniform(0.0, 0.05))
        self._api.stop(signal.SIGKILL)
        self._api = self._site.start_api()
        self.done["api_kills"] += 1
        self._say("the API was killed after a 202 and started again")

    def _pause_slow(self) -> None:
        self._pause(SLOW_SECONDS)
        self.done["slow"] += 1

    def _pause_down(self) -> None:
        self._pause(DOWN_SECONDS)
        self.done["down"] += 1

    def _pause(self, seconds: float) -> None:
        """Stop the broker's process for so long; its connections stay open and nothing answers."""
        family = self._broker.family()
        for process in family:
            process.suspend()
        time.sleep(seconds)
        for process in family:
            process.resume()
        self._say(f"the broker was paused for {seconds:g} s")

    def _audit(self) -> Audit:
        """Read the outputs once everything acknowledged is there, or when it is too late."""
        end = time.monotonic() + DRAIN_SECONDS
        while True:
            self._crew.supervise()
            audit = Audit.of(self._site)
            if not self._sender.acknowledged - audit.scored.keys() or time.monotonic() > end:
                return audit
            time.sleep(1.0)


def inflict(plan: Plan, say: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
    """Run a plan on a site of its own; figures of the ledger, `passed` among them."""
    with Site(session_timeout_ms=SESSION_MS) as site:
        figures = Chaos(site, plan, say).run()
    zero = ("lost", "duplicates", "alerts_lost", "alert_duplicates", "dead_letters")
    return {"passed": not any(figures[name] for name in zero), **figures}


def main() -> int:
    """Parse the command line, run, print."""
    # The services that were started end with this process, also where it is told to stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = asdict(Plan())
    for name in ("transactions", "kills", "zombies", "scalings", "api_kills", "slow", "down", "workers", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name])
    parser.add_argument("--seconds", type=float, default=defaults["seconds"], help="expected length of the faults")
    parser.add_argument("--out", type=Path, help="file of results to add to, such as docs/bench.json")
    options = vars(parser.parse_args())
    out: Path | None = options.pop("out")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)  # rather than find out after the last kill
    plan, machine = Plan(**options), describe()
    result = inflict(plan, lambda text: print(text, file=sys.stderr, flush=True))
    if out:
        from bench import results

        found = results.read(out)
        results.write(found | {"machines": found.get("machines", {}) | {"chaos": machine}, "chaos": result}, out)
    print(json.dumps({**result, "machine": machine}))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
