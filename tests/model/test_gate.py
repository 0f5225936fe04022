"""Degenerate candidates do not get past the gate: measured as notebook 04 measures, on real scores."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fraudlib import (
    baselines,
    bundle,
    calibration,
    contest,
    evaluation,
    features,
    manifest,
    parts,
    repeats,
    scoring,
    simulate,
    statistics,
    training,
    trial,
    trips,
    verdict,
)
from fraudlib.model import READINGS, ModelConfig
from fraudlib.scoring import Scorer

from .conftest import SMALL, Columns, Room

BUDGET, PREVALENCE = 0.01, 0.0125
DATA = {
    "service": "green",
    "simulated": True,
    "splits": {
        "train": {"period": "2023-05-01:2023-05-06"},
        "valid": {"period": "2023-05-07:2023-05-09"},
        "test": {"period": "2023-05-10:2023-05-14"},
    },
}
Judge = Callable[[Scorer], verdict.Verdict]


@pytest.fixture(scope="module")
def live(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder in which the small model is live."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    x = features.build(room.valid, room.statistics)
    reference = bundle.reference_histograms(x, room.scorer.score(room.valid).anomaly_score)
    made = (
        room.model,
        room.statistics,
        room.calibration,
        {"threshold": room.scorer.threshold},
        {},
        DATA,
        {},
        reference,
    )
    manifest.set_current(artifacts, bundle.seal(artifacts, "run-1", *made).name, "first")
    return artifacts


@pytest.fixture(scope="module")
def judge(room: Room, sample: Columns, live: Path) -> Judge:
    """The gate's verdict on a scorer, beside the small live model, on trips that neither has seen."""
    test = features.take(sample, slice(14_000, 22_000))
    planted = trial.plant(test, 0.05, 2, 2300)
    some = baselines.sample(room.train, 2000, 7)
    rival = baselines.unlabelled(some, room.statistics, 7)["isolation forest"]
    both = features.concat([test, planted.columns])
    label = np.repeat([False, True], [features.row_count(part) for part in (test, planted.columns)])
    options: dict[str, Any] = {"rounds": 40, "seed": 7, "prevalence": PREVALENCE}
    forest = rival(both, features.build(both, room.statistics))
    rivals = {"isolation forest": evaluation.evaluate(label, forest, np.inf, **options)}

    def decide(scorer: Scorer) -> verdict.Verdict:
        honest, found = (scorer.score(columns).anomaly_score for columns in (test, planted.columns))
        metrics = evaluation.evaluate(label, np.append(honest, found), scorer.threshold, **options)
        realised = evaluation.wilson(int((honest > scorer.threshold).sum()), len(honest))
        threshold = {"threshold": scorer.threshold, "false_positive_budget": BUDGET}
        beside = contest.against_live(live, DATA, test, planted.columns, (honest, found), threshold, **options)
        metrics |= {
            "baselines": rivals,
            "drift": evaluation.drift(realised, BUDGET, realised),
            "by_kind": evaluation.by_kind(planted.kind, found, scorer.threshold),
            "cost": {"bytes": 400_000, "rows_per_second": contest.rows_per_second(scorer, test)},
            "live": beside,
            "service": "green",
            "simulated": True,
        }
        return verdict.decide(parts.jsonable(metrics), 0.4, 0.3)

    return decide


def tuned(model: torch.nn.Module, fitted: statistics.Statistics, valid: Columns) -> Scorer:
    """Scorer of a model, calibrated with its threshold as notebook 03 does."""
    raw = scoring.raw_scores(model, features.build(valid, fitted))
    rarity = calibration.fit(raw.logit, raw.surprise, READINGS, ~np.isnan(repeats.find(valid)))
    line = float(np.quantile(rarity.score(raw.logit, raw.surprise), 1 - BUDGET))
    return Scorer("candidate", model, fitted, rarity, line)


def test_the_model_that_is_live_is_as_good_as_itself(room: Room, judge: Judge) -> None:
    """Sealed and loaded it differs from itself by rounding alone, and the gate lets it through: it can say yes."""
    decision = judge(room.scorer)
    assert decision.decision == "promote", decision.reason
    beside = [check for check in decision.checks if check.name.startswith("average precision beside")]
    assert [abs(float(check.found.split()[0])) <= 0.001 for check in beside] == [True]


def test_a_model_of_zeros_is_refused(room: Room, judge: Judge) -> None:
    """Weights that a training lost are refused for what they find, which is nothing."""
    model = copy.deepcopy(room.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    decision = judge(Scorer("zeros", model, room.statistics, room.calibration, room.scorer.threshold))
    assert decision.decision == "reject"
    assert "average precision" in decision.reason


def test_a_model_taught_with_shuffled_labels_is_refused(
    room: Room, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that was taught at random is worse than the live one beyond the interval."""
    honest_set = training.teach_set

    def shuffled(*args: Any, **more: Any) -> Any:
        x, label = honest_set(*args, **more)
        return x, np.random.default_rng(1).permutation(label)

    monkeypatch.setattr(training, "teach_set", shuffled)
    model = copy.deepcopy(room.model)
    training.fit_head(model, room.train, room.valid, room.statistics, SMALL, training.Curves(), progress=False)
    decision = judge(tuned(model.eval(), room.statistics, room.valid))
    assert decision.decision == "reject"
    assert "beside" in decision.reason


def test_a_model_of_the_wrong_service_is_refused(judge: Judge, tmp_path: Path) -> None:
    """Trained on yellow trips that somebody put into the green folder, it does not find green frauds within budget."""
    path = tmp_path / "yellow_tripdata_2023-05.parquet"
    simulate.write(simulate.simulate_month("2023-05", "yellow", 14_000, 3), path)
    yellow = trips.to_columns(trips.read(path))
    train, valid = features.take(yellow, slice(0, 9000)), features.take(yellow, slice(9000, 14_000))
    fitted = statistics.fit(train)
    model, _ = training.fit(train, valid, fitted, ModelConfig(), SMALL, progress=False)
    assert judge(tuned(model, fitted, valid)).decision == "reject"


def test_the_paired_interval_is_narrower_than_either_ones_own() -> None:
    """What two detectors share cancels out of their difference, so a small lead on one month can be told."""
    rng = np.random.default_rng(5)
    label = np.arange(6000) < 300
    shared = rng.normal(size=6000) + 2.5 * label
    one, other = (shared + rng.normal(scale=0.1, size=6000) for _ in range(2))
    found = contest.paired(label, one, other, BUDGET, PREVALENCE, rounds=100, seed=1)
    width = {name: part["average_precision"]["high"] - part["average_precision"]["low"] for name, part in found.items()}
    assert width["difference"] < 0.5 * min(width["champion"], width["challenger"])
    interval = found["difference"]["average_precision"]
    assert interval["low"] <= 0.0 <= interval["high"]


def test_a_live_bundle_of_another_service_is_named_and_not_compared(live: Path) -> None:
    """Yellow beside green: no figures, and the gate can say which service is live."""
    columns = {"trip_distance": np.ones(3)}
    of = DATA | {"service": "yellow"}
    options: dict[str, Any] = {"prevalence": PREVALENCE, "rounds": 2, "seed": 1}
    found = contest.against_live(live, of, columns, columns, (np.ones(3), np.ones(3)), {}, **options)
    assert (found["service"], found["same_service"]) == ("green", False)
    assert "difference" not in found


def test_a_live_bundle_that_does_not_load_is_not_compared(live: Path, tmp_path: Path) -> None:
    """A broken champion must not keep every candidate out; the reason is kept."""
    (tmp_path / "current").write_text("gone\n")
    options: dict[str, Any] = {"prevalence": PREVALENCE, "rounds": 2, "seed": 1}
    found = contest.against_live(tmp_path, DATA, {}, {}, (np.ones(0), np.ones(0)), {}, **options)
    assert found["bundle_id"] is None
    assert "which is not there" in found["note"]
