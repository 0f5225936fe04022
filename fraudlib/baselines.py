"""What the model has to beat: detectors fitted on the same training trips without labels."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from fraudlib.features import take
from fraudlib.statistics import duration_minutes

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[np.generic]]
Detector = Callable[[Columns], Array]  # trips to anomaly scores of shape (n,): the higher, the more abnormal

FIVE: Final = ("trip_distance", "fare_amount", "duration_minutes", "fare_per_mile", "speed_mph")


def five_features(columns: Columns) -> Array:
    """The five features that this field usually shows, (n, 5), 0 where missing."""
    n = len(columns["trip_distance"])
    miles, fare = columns["trip_distance"].astype(np.float64), columns["fare_amount"].astype(np.float64)
    minutes = duration_minutes(columns, n)
    per_mile, speed = fare / np.maximum(miles, 0.1), miles / np.maximum(minutes / 60, 1 / 60)
    return np.nan_to_num(np.stack([miles, fare, minutes, per_mile, speed], axis=1))


def sample(columns: Columns, rows: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """At most this many trips, drawn without replacement."""
    n = len(columns["trip_distance"])
    return take(columns, np.random.default_rng(seed).choice(n, min(n, rows), replace=False))


def isolation_forest(train: Columns, seed: int) -> Detector:
    """Isolation forest on the five features.

    Source: Liu, Ting and Zhou, ICDM 2008.
    """
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(five_features(train))
    return lambda columns: np.asarray(-forest.score_samples(five_features(columns)))


AUTOENCODER_PASSES: Final = 20


def five_feature_autoencoder(train: Columns, seed: int) -> Detector:
    """Plain autoencoder on the five features: mean squared reconstruction error."""
    scaler = StandardScaler().fit(five_features(train))
    x = scaler.transform(five_features(train))
    net = MLPRegressor(hidden_layer_sizes=(16, 3, 16), random_state=seed)
    for _ in range(AUTOENCODER_PASSES):
        net.partial_fit(x, x)

    def score(columns: Columns) -> Array:
        y = scaler.transform(five_features(columns))
        return np.asarray(((net.predict(y) - y) ** 2).mean(axis=1))

    return score


PERCENTILE: Final = 95.0  # of the training scores: the threshold that is usually shown with the autoencoder
BASELINES: Final[dict[str, Callable[[Columns, int], Detector]]] = {
    "isolation forest": isolation_forest,
    "five-feature autoencoder": five_feature_autoencoder,
}
