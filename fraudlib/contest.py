"""The candidate against the bundle that is live: both on the same unseen trips with the same frauds planted."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fraudlib import bundle, features, manifest
from fraudlib.errors import FraudError
from fraudlib.evaluation import Array, Bools, Columns, Curve, Interval, Ranking, wilson
from fraudlib.paths import CURRENT
from fraudlib.scoring import Scorer

SPEED_ROWS: Final = 4096  # half of a full micro-batch of the worker
SPEED_TRIES: Final = 3


def _figures(curve: Curve, budget: float, prevalence: float) -> dict[str, float]:
    i = curve.within(budget)
    recall = float(curve.recall[i]) if i >= 0 else 0.0
    return {"average_precision": curve.average_precision(prevalence), "recall_at_budget": recall}


def paired(
    label: Bools, champion: Array, challenger: Array, budget: float, prevalence: float, rounds: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Average precision and recall at the budget of both, and the challenger's lead, each with its 95 % interval.

    Every bootstrap draw counts the same trips for both, so that what makes a month hard for both cancels out of the
    difference: its interval is several times narrower than either one's own.

    Parameters
    ----------
    label : (n,), True where fraud. champion, challenger : scores of the same rows, (n,), higher is more abnormal.
    budget : share of honest trips that may be flagged. prevalence : share of fraud that precision stands for.
    rounds : bootstrap draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 8 and 13 (paired data, percentiles).
    """
    rankings = {"champion": Ranking(label, champion), "challenger": Ranking(label, challenger)}
    rng, groups = np.random.default_rng(seed), (np.flatnonzero(label), np.flatnonzero(~label))

    def both(times: Any) -> dict[str, dict[str, float]]:
        curves = {name: r.curve(None if times is None else times[r.order]) for name, r in rankings.items()}
        out = {name: _figures(curve, budget, prevalence) for name, curve in curves.items()}
        return out | {"difference": {k: out["challenger"][k] - v for k, v in out["champion"].items()}}

    draws = []
    for _ in range(rounds):
        times = np.zeros(len(label), dtype=np.int64)
        for rows in groups:
            times[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        draws.append(both(times))

    def interval(name: str, key: str, value: float) -> dict[str, float]:
        low, high = np.quantile([draw[name][key] for draw in draws], [0.025, 0.975]) if draws else (value, value)
        return Interval(value, float(low), float(high)).to_json()

    return {name: {key: interval(name, key, value) for key, value in part.items()} for name, part in both(None).items()}


def rows_per_second(scorer: Scorer, columns: Columns) -> float:
    """Trips that the scorer takes in a second of processor time, best of a few tries on one half-full micro-batch."""
    some = features.take(columns, slice(0, SPEED_ROWS))
    seconds = []
    for _ in range(SPEED_TRIES):
        start = time.process_time()
        scorer.score(some)
        seconds.append(time.process_time() - start)
    return features.row_count(some) / max(min(seconds), 1e-9)


def overlap(one: str, other: str) -> bool:
    """Whether two periods, of months or days, share a day.

    Examples
    --------
    >>> overlap("2023-01:2023-03", "2023-03-31:2023-04-02"), overlap("2023-05-01:2023-05-19", "2023-05-20")
    (True, False)
    """
    ends = [(p.split(":", 1)[0], p.rsplit(":", 1)[-1]) for p in (one, other)]
    (start, end), (other_start, other_end) = ends

    def is_before(day: str, then: str) -> bool:
        return day[: len(then)] < then[: len(day)]

    return not is_before(end, other_start) and not is_before(other_end, start)


def _saw(champion: manifest.Manifest, data: Mapping[str, Any]) -> bool:
    """Whether the champion learned or tuned on trips of the period that it is judged on."""
    if champion.data.get("simulated") != data["simulated"]:
        return False
    test = data["splits"]["test"]["period"]
    periods = [part["period"] for name, part in champion.data.get("splits", {}).items() if name != "test"]
    return any(overlap(period, test) for period in periods)


def against_live(
    artifacts: Path,
    data: Mapping[str, Any],
    honest: Columns,
    planted: Columns,
    scores: tuple[Array, Array],
    threshold: Mapping[str, Any],
    *,
    prevalence: float,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Score the live bundle on the candidate's test trips and compare, JSON-ready.

    Parameters
    ----------
    artifacts : folder whose live bundle is the champion. data : what the candidate's run says about its trips.
    honest, planted : trips of the test period as they came, and frauds planted into copies, (n,) and (m,) a column.
    scores : of the candidate on both, (n,) and (m,). threshold : the candidate's, as 03 wrote it.

    Returns
    -------
    `bundle_id`, None where nothing is live or it does not load (`note` says which); `same_service`, `simulated` and
    `saw_test` of the champion; where the service is the same also `champion`, `challenger` and `difference`.
    """
    out: dict[str, Any] = {"bundle_id": None, "note": "nothing is live yet"}
    try:
        folder = manifest.current_bundle(artifacts)
        if folder is None:
            return out
        live = bundle.load(folder)
    except (FraudError, OSError) as err:
        return out | {"note": f"the live bundle does not load and is not compared: {err}"}
    of = live.manifest
    service = str(of.data.get("service", of.parameters.get("service", "")))
    out = {"bundle_id": of.bundle_id, "run_id": of.run_id, "service": service, "note": f"{CURRENT} bundle"}
    out |= {"same_service": service == data["service"], "simulated": bool(of.data.get("simulated"))}
    out["saw_test"] = _saw(of, data)
    if not out["same_service"]:
        return out
    theirs = [live.scorer.score(columns).anomaly_score for columns in (honest, planted)]
    label = np.repeat([False, True], [len(part) for part in theirs])
    budget = float(threshold["false_positive_budget"])
    found = paired(label, np.concatenate(theirs), np.concatenate(scores), budget, prevalence, rounds, seed)
    lines = {"champion": (theirs, live.scorer.threshold), "challenger": (scores, float(threshold["threshold"]))}
    for name, ((of_honest, of_fraud), line) in lines.items():
        found[name]["recall"] = wilson(int((of_fraud > line).sum()), len(of_fraud)).to_json()
        found[name]["false_positive_rate"] = wilson(int((of_honest > line).sum()), len(of_honest)).to_json()
        found[name]["threshold"] = line
    return out | found
