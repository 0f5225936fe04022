"""Whether a candidate is good enough to go live, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fraudlib.errors import GateError

MAX_OVER_BUDGET: Final = 2.0  # times the budget that staff can absorb until the next retraining


@dataclass(frozen=True)
class Verdict:
    """What the gate decides: passed or not, and the reason in one line."""

    passed: bool
    reason: str

    def require(self) -> None:
        """Raise GateError with the reason unless passed."""
        if not self.passed:
            raise GateError(f"the candidate did not pass the gate and was not sealed: {self.reason}")


def decide(metrics: Mapping[str, Any], min_average_precision: float) -> Verdict:
    """Hold the metrics of notebook 04 against the gate: average precision, baselines, realised false positives.

    Parameters
    ----------
    metrics : `average_precision`, `baselines`, `drift` and `recall` as 04 gathers them.
    min_average_precision : least average precision let through.
    """
    precision = metrics["average_precision"]["value"]
    best, rival = max((b["average_precision"]["value"], name) for name, b in metrics["baselines"].items())
    factor, budget = metrics["drift"]["factor"], metrics["drift"]["budget"]
    failures = []
    # Written so that a metric that is missing (None) or NaN fails as well.
    if precision is None or not precision >= min_average_precision:
        failures.append(f"average precision {_number(precision)} is below {min_average_precision:g}")
    if precision is None or not precision > best:
        failures.append(f"average precision {_number(precision)} is not above {best:.3f} of the {rival}")
    if factor is None or not factor <= MAX_OVER_BUDGET:
        failures.append(
            f"false positives are {_number(factor)} times the budget of {budget:g}, at most {MAX_OVER_BUDGET:g} allowed"
        )
    if failures:
        return Verdict(False, "; ".join(failures))
    recall = metrics["recall"]["value"]
    return Verdict(
        True,
        f"average precision {precision:.3f} (at least {min_average_precision:g}, best baseline {best:.3f}), "
        f"recall {recall:.3f}, false positives {factor:.2f} times the budget of {budget:g}",
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
