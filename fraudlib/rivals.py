"""Other detectors on the model's own trips: fitted on a sample of training, judged beside it, asked about new kinds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fraudlib import baselines, evaluation, features, heldout
from fraudlib.evaluation import Array, Bools, Columns
from fraudlib.scoring import Scorer
from fraudlib.trial import Trial


@dataclass(frozen=True)
class Rivals:
    """Fitted detectors and what they made of the honest trips and the frauds.

    Attributes
    ----------
    detectors : name -> detector, those without labels first. taught : names of those that were shown fraud.
    label : of the trips that they were judged on, (m,), True where fraud. scores : name -> (m,).
    metrics : name -> as `evaluation.evaluate` gives them.
    rows : most trips that each was fitted on, and is asked about later. seed : of drawing them.
    """

    detectors: dict[str, baselines.Rival]
    taught: tuple[str, ...]
    label: Bools
    scores: dict[str, Array]
    metrics: dict[str, dict[str, Any]]
    rows: int
    seed: int

    @property
    def without_labels(self) -> dict[str, dict[str, Any]]:
        """Metrics of those that were fitted on trips alone."""
        return {name: part for name, part in self.metrics.items() if name not in self.taught}

    @property
    def with_labels(self) -> dict[str, dict[str, Any]]:
        """Metrics of those that were shown fraud, corruption or both."""
        return {name: self.metrics[name] for name in self.taught}

    def recall_of(self, frauds: Columns, scorer: Scorer) -> dict[str, dict[str, float]]:
        """Share of other frauds that each finds at one false positive in a hundred, with its interval; JSON-ready."""
        some = baselines.sample(frauds, self.rows, self.seed)
        x, out = features.build(some, scorer.statistics), {}
        for name, detector in self.detectors.items():
            hit = heldout.flagged_at(self.scores[name][~self.label], detector(some, x))
            out[name] = evaluation.wilson(int(hit.sum()), len(hit)).to_json()
        return out


def judge(
    scorer: Scorer,
    train: Columns,
    honest: Columns,
    planted: Trial,
    rows: int,
    *,
    rounds: int,
    seed: int,
    prevalence: float,
) -> Rivals:
    """Fit every detector of `baselines` on a sample of the training trips and judge it on twice as many others.

    Parameters
    ----------
    scorer : of the model; lends its statistics, and its autoencoder to the sum of surprises.
    train, honest : honest trips of the training and the test period, shape (n,) each. planted : frauds.
    rows : most training trips that a detector is fitted on. rounds, prevalence : as `evaluation.evaluate` takes them.
    """
    some = baselines.sample(train, rows, seed)
    unlabelled = baselines.unlabelled(some, scorer.statistics, seed)
    unlabelled["sum of surprises"] = baselines.sum_of_surprises(scorer)
    taught = baselines.taught(some, scorer.statistics, seed)
    detectors = unlabelled | taught
    n, m = features.row_count(honest), features.row_count(planted.columns)
    seen: NDArray[np.int64] = np.random.default_rng(seed).choice(n + m, min(n + m, 2 * rows), replace=False)
    seen.sort()
    judged = features.take(features.concat([honest, planted.columns]), seen)
    label, loss = seen >= n, np.append(np.zeros(n), planted.loss_usd)[seen]
    x, x_some = (features.build(part, scorer.statistics) for part in (judged, some))
    scores, metrics = {}, {}
    for name, detector in detectors.items():
        scores[name] = detector(judged, x)
        line = float(np.percentile(detector(some, x_some), baselines.PERCENTILE))
        metrics[name] = evaluation.evaluate(
            label, scores[name], line, rounds=rounds, seed=seed, prevalence=prevalence, loss_usd=loss
        )
    return Rivals(detectors, tuple(taught), label, scores, metrics, rows, seed)
