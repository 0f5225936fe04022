"""A few thousand simulated trips and a small model trained on them, shared by the tests of the model's rooms."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from fraudlib import calibration, features, paths, repeats, scoring, statistics, training, trips
from fraudlib.calibration import Calibration
from fraudlib.model import READINGS, FraudModel, ModelConfig
from fraudlib.scoring import Scorer
from fraudlib.statistics import Statistics

Columns = dict[str, NDArray[np.generic]]
SMALL = training.TrainingConfig(epochs=5, head_rounds=2, head_epochs=5, batch_size=512)


@dataclass(frozen=True)
class Room:
    """Splits, statistics, model, calibration and scorer of one small training."""

    train: Columns
    valid: Columns
    statistics: Statistics
    model: FraudModel
    curves: training.Curves
    calibration: Calibration
    scorer: Scorer


@pytest.fixture(scope="session")
def sample() -> Columns:
    """The committed simulated month as columns."""
    path = next((paths.root() / "data" / "sample").glob("*.parquet"))
    return dict(trips.to_columns(trips.read(path)))


@pytest.fixture(scope="session")
def room(sample: Columns) -> Room:
    """A model trained for seconds on the first trips of the sample."""
    train, valid = features.take(sample, slice(0, 9000)), features.take(sample, slice(9000, 14000))
    fitted = statistics.fit(train)
    model, curves = training.fit(train, valid, fitted, ModelConfig(), SMALL, progress=False)
    raw = scoring.raw_scores(model, features.build(valid, fitted))
    rarity = calibration.fit(raw.logit, raw.surprise, READINGS, ~np.isnan(repeats.find(valid)))
    threshold = float(np.quantile(rarity.score(raw.logit, raw.surprise), 0.99))
    return Room(train, valid, fitted, model, curves, rarity, Scorer("small", model, fitted, rarity, threshold))
