"""Whether a candidate goes live, is scored in the shadow of what is live, or is refused, and why (docs/gate.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fraudlib.errors import GateError

MAX_OVER_BUDGET: Final = 2.0  # times the budget that staff can absorb until the next retraining
EVEN: Final = 0.02  # a deficit of average precision or recall below which two bundles count as even
MAX_BYTES: Final = 20_000_000  # of weights and statistics, which every worker holds in memory
MIN_ROWS_PER_SECOND: Final = 5_000  # on one thread: several times what the API takes one by one

PROMOTE, SHADOW, REJECT = "promote", "shadow", "reject"
_RANK: Final = (PROMOTE, SHADOW, REJECT)


@dataclass(frozen=True)
class Check:
    """One line of the policy: what was asked, what was found, and what follows from this line alone."""

    name: str
    required: str
    found: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.name} {self.found}, required {self.required}"


@dataclass(frozen=True)
class Verdict:
    """What the gate decides ("promote", "shadow" or "reject"), the reason in one line, and every check."""

    decision: str
    reason: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate is sealed: it may go live, at once or after a time in the shadow."""
        return self.decision != REJECT

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, as `gate.json` keeps it."""
        return {"passed": self.passed, **asdict(self)}

    def require(self) -> None:
        """Raise GateError with the reason where the candidate was refused."""
        if not self.passed:
            raise GateError(f"the candidate did not pass the gate and was not sealed: {self.reason}")


def decide(metrics: Mapping[str, Any], min_average_precision: float, min_easy_recall: float) -> Verdict:
    """Hold the metrics of notebook 04 against the policy; the strictest check decides.

    Parameters
    ----------
    metrics : `average_precision`, `recall`, `baselines`, `drift`, `by_kind`, `cost`, `simulated` and `live`, as 04
        gathers them. One that is missing (None) or NaN fails its check.
    min_average_precision : least average precision let through.
    min_easy_recall : least recall at the threshold of each kind that breaks an identity of the record.
    """
    checks = (*_alone(metrics, min_average_precision, min_easy_recall), *_beside(metrics, metrics["live"]))
    decision = max((check.outcome for check in checks), key=_RANK.index)
    if decision == PROMOTE:
        return Verdict(decision, _praise(metrics, min_average_precision), checks)
    return Verdict(decision, "; ".join(str(check) for check in checks if check.outcome == decision), checks)


def _check(name: str, required: str, found: str, holds: bool, otherwise: str = REJECT) -> Check:
    return Check(name, required, found, PROMOTE if holds else otherwise)


def _alone(metrics: Mapping[str, Any], min_average_precision: float, min_easy_recall: float) -> Iterator[Check]:
    """Checks that need no other bundle. Comparisons are written so that None and NaN fail."""
    precision = metrics["average_precision"]["value"]
    name = "average precision"
    yield _check(
        name, f"at least {min_average_precision:g}", _number(precision), _least(precision, min_average_precision)
    )
    best, rival = max((b["average_precision"]["value"], name) for name, b in metrics["baselines"].items())
    is_above = precision is not None and precision > best
    yield _check(name, f"above {best:.3f} of the {rival}", _number(precision), is_above)
    factor, budget = metrics["drift"]["factor"], metrics["drift"]["budget"]
    holds = factor is not None and factor <= MAX_OVER_BUDGET
    required = f"at most {MAX_OVER_BUDGET:g} times the budget of {budget:g}"
    yield _check("false positives", required, f"{_number(factor)} times", holds)
    easy = {k: part["recall"]["value"] for k, part in metrics["by_kind"].items() if part["easy"]}
    worst = min(easy, key=lambda k: -1.0 if easy[k] is None else easy[k]) if easy else "no easy kind planted"
    found = f"{_number(easy.get(worst))} of {worst}"
    yield _check(
        "recall of every easy kind", f"at least {min_easy_recall:g}", found, _least(easy.get(worst), min_easy_recall)
    )
    size, speed = metrics["cost"]["bytes"], metrics["cost"]["rows_per_second"]
    yield _check("size", f"at most {MAX_BYTES / 1e6:g} MB", f"{size / 1e6:.2f} MB", 0 < size <= MAX_BYTES)
    required = f"at least {MIN_ROWS_PER_SECOND:,} rows a second on one thread"
    yield _check("speed", required, f"{speed:,.0f}", _least(speed, MIN_ROWS_PER_SECOND))


def _beside(metrics: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[Check]:
    """Checks against the live bundle, none where nothing is live that loads."""
    if live["bundle_id"] is None:
        return
    beside = f"beside {live['bundle_id']}"
    yield _check("service", f"the live bundle's, {live['service']}", metrics["service"], live["same_service"])
    if not live["same_service"]:
        return
    may_replace = not metrics["simulated"] or live["simulated"]
    trips = "simulated trips" if metrics["simulated"] else "real trips"
    yield _check("trained on", "real trips, as the live bundle was", trips, may_replace, SHADOW)
    for key, name in (("average_precision", "average precision"), ("recall_at_budget", "recall at the budget")):
        lead = live["difference"][key]
        value, low, high = lead["value"], lead["low"], lead["high"]
        if value is None or not low >= -EVEN:
            outcome = SHADOW if value is not None and high >= 0 else REJECT
        else:
            outcome = PROMOTE
        found = "unknown" if value is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        yield Check(f"{name} {beside}", f"surely no more than {EVEN:g} below", found, outcome)
    yield _over_budget(metrics["drift"]["budget"], live)


def _over_budget(budget: float, live: Mapping[str, Any]) -> Check:
    """Over the budget beyond chance, it waits in the shadow, unless the live bundle is as far over it."""
    mine, theirs = (live[name]["false_positive_rate"] for name in ("challenger", "champion"))
    holds = mine["low"] <= budget or mine["value"] <= theirs["value"]
    found = f"{mine['value']:.2%} [{mine['low']:.2%}, {mine['high']:.2%}]"
    required = f"within {budget:.2%} or no more than the live bundle's {theirs['value']:.2%}"
    return _check("false positives", required, found, holds, SHADOW)


def _praise(metrics: Mapping[str, Any], min_average_precision: float) -> str:
    precision, recall = metrics["average_precision"]["value"], metrics["recall"]["value"]
    best = max(b["average_precision"]["value"] for b in metrics["baselines"].values())
    factor, budget = metrics["drift"]["factor"], metrics["drift"]["budget"]
    live = metrics["live"]
    text = (
        f"average precision {precision:.3f} (at least {min_average_precision:g}, best baseline {best:.3f}), "
        f"recall {recall:.3f}, false positives {factor:.2f} times the budget of {budget:g}"
    )
    if live["bundle_id"] is None:
        return f"{text}; {live['note']}"
    lead = live["difference"]["average_precision"]
    text += f"; average precision {lead['value']:+.3f} [{lead['low']:+.3f}, {lead['high']:+.3f}]"
    return f"{text} beside {live['bundle_id']}" + (", which had seen this period" if live["saw_test"] else "")


def _least(value: float | None, least: float) -> bool:
    return value is not None and value >= least


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
