"""The gate promotes, shadows or refuses by the written policy, and says why."""

from typing import Any

import pytest

from fraudlib import verdict
from fraudlib.errors import GateError

NOTHING_LIVE = {"bundle_id": None, "note": "nothing is live yet"}


def lead(value: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    """An interval as JSON keeps it."""
    return {"value": value, "low": low, "high": high}


def live(**changes: Any) -> dict[str, Any]:
    """A comparison with a live bundle that the candidate beats."""
    rate = {"false_positive_rate": lead(0.009, 0.008, 0.010)}
    even = {"average_precision": lead(0.01, 0.0, 0.02), "recall_at_budget": lead(0.01, -0.01, 0.02)}
    base = {"bundle_id": "live-1", "service": "green", "same_service": True, "simulated": False, "saw_test": False}
    return base | {"champion": rate, "challenger": rate, "difference": even} | changes


def measured(**changes: Any) -> dict[str, Any]:
    """Metrics of a candidate that meets every bound and has nothing beside it."""
    kinds = {"flat_fare": (0.99, True), "toll_phantom": (0.9, True), "long_haul": (0.2, False)}
    return {
        "average_precision": {"value": 0.8},
        "recall": {"value": 0.8},
        "baselines": {"isolation forest": {"average_precision": {"value": 0.1}}},
        "drift": {"factor": 1.0, "budget": 0.01},
        "by_kind": {name: {"recall": lead(recall), "easy": easy} for name, (recall, easy) in kinds.items()},
        "cost": {"bytes": 450_000, "rows_per_second": 60_000.0},
        "service": "green",
        "simulated": False,
        "live": NOTHING_LIVE,
    } | changes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"average_precision": {"value": 0.3}}, "average precision 0.300, required at least 0.6"),
        ({"baselines": {"ECOD": {"average_precision": {"value": 0.85}}}}, "above 0.850 of the ECOD"),
        ({"drift": {"factor": 9.0, "budget": 0.01}}, "false positives 9.000 times"),
        ({"average_precision": {"value": None}}, "average precision unknown"),
        ({"average_precision": {"value": float("nan")}}, "average precision nan"),
        ({"drift": {"factor": None, "budget": 0.01}}, "false positives unknown"),
        ({"by_kind": {"toll_phantom": {"recall": lead(0.1), "easy": True}}}, "0.100 of toll_phantom"),
        ({"by_kind": {}}, "no easy kind planted"),
        ({"cost": {"bytes": 90_000_000, "rows_per_second": 60_000.0}}, "size 90.00 MB"),
        ({"cost": {"bytes": 450_000, "rows_per_second": 90.0}}, "speed 90"),
        ({"live": live(service="yellow", same_service=False)}, "service green, required the live bundle's, yellow"),
    ],
)
def test_the_gate_refuses(changes: dict[str, Any], word: str) -> None:
    """A weak, beaten, trigger-happy, unmeasured, blind, large, slow or misplaced candidate is refused by name."""
    decision = verdict.decide(measured(**changes), 0.6, 0.5)
    assert (decision.decision, decision.passed) == ("reject", False)
    with pytest.raises(GateError, match="not sealed"):
        decision.require()
    assert word in decision.reason


def test_the_gate_lets_a_good_one_through() -> None:
    """A candidate that meets every bound is promoted where nothing is live, and the reason says by what."""
    decision = verdict.decide(measured(), 0.6, 0.5)
    assert decision.decision == "promote"
    assert "0.800" in decision.reason
    assert "nothing is live yet" in decision.reason
    decision.require()


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (lead(0.03, 0.01, 0.05), "promote"),
        (lead(0.0, 0.0, 0.0), "promote"),
        (lead(-0.01, -0.018, -0.002), "promote"),
        (lead(-0.01, -0.04, 0.02), "shadow"),
        (lead(0.01, -0.05, 0.07), "shadow"),
        (lead(-0.05, -0.08, -0.02), "reject"),
        (lead(None), "reject"),
        (lead(float("nan"), float("nan"), float("nan")), "reject"),
    ],
)
@pytest.mark.parametrize("figure", ["average_precision", "recall_at_budget"])
def test_the_difference_to_the_live_bundle_decides(difference: dict[str, Any], expected: str, figure: str) -> None:
    """Surely no worse goes live, perhaps worse waits in the shadow, worse beyond the interval is refused."""
    beside = live()
    decision = verdict.decide(measured(live=live(difference=beside["difference"] | {figure: difference})), 0.6, 0.5)
    assert decision.decision == expected
    assert "live-1" in decision.reason


def test_a_simulated_candidate_waits_beside_a_real_bundle() -> None:
    """What was trained on simulated trips never takes the place of what was trained on real ones by itself."""
    assert verdict.decide(measured(simulated=True, live=live()), 0.6, 0.5).decision == "shadow"
    assert verdict.decide(measured(simulated=True, live=live(simulated=True)), 0.6, 0.5).decision == "promote"


def test_over_the_budget_waits_unless_the_live_bundle_is_as_far_over() -> None:
    """A rate above the budget beyond chance is no reason to keep a bundle that is over it by more."""
    over, far = ({"false_positive_rate": lead(v, v - 0.001, v + 0.001)} for v in (0.015, 0.019))
    assert verdict.decide(measured(live=live(challenger=over)), 0.6, 0.5).decision == "shadow"
    assert verdict.decide(measured(live=live(challenger=over, champion=far)), 0.6, 0.5).decision == "promote"


def test_the_strictest_check_decides_and_all_are_kept() -> None:
    """A refusal is not softened by another check that would shadow, and every line of the policy is written down."""
    weak = measured(average_precision={"value": 0.2}, simulated=True, live=live())
    decision = verdict.decide(weak, 0.6, 0.5)
    assert decision.decision == "reject"
    assert {check["outcome"] for check in decision.to_json()["checks"]} == {"promote", "shadow", "reject"}
