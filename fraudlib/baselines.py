"""What the model has to beat: detectors fitted on the same training trips, without labels, or taught as the head is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fraudlib import features, fraud, scoring, training
from fraudlib.features import take
from fraudlib.statistics import Statistics, duration_minutes

Array = NDArray[np.float64]
Matrix = NDArray[np.float32]  # the model's features, (n, F), NaN where missing
Columns = Mapping[str, NDArray[np.generic]]
Detector = Callable[[Columns], Array]  # trips to anomaly scores of shape (n,): the higher, the more abnormal
MatrixDetector = Callable[[Matrix], Array]  # the same from the model's features
Rival = Callable[[Columns, Matrix], Array]  # either: trips and their features

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


def _scaler(train: Matrix) -> Callable[[Matrix], Matrix]:
    """Standard deviations from the mean, at most 12, 0 where missing: as the model sees them."""
    known = np.where(np.isnan(train).all(axis=0), 0.0, train)
    low, high = np.nanquantile(known, [0.001, 0.999], axis=0)
    mean, spread = np.nanmean(known, axis=0), np.nanstd(np.clip(known, low, high), axis=0)
    spread = np.where(spread < 1e-3, 1.0, spread)
    return lambda x: np.nan_to_num(np.clip((x - mean) / spread, -12, 12)).astype(np.float32)


def isolation_forest_on_features(train: Matrix, seed: int) -> MatrixDetector:
    """Isolation forest on the model's features."""
    scale = _scaler(train)
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(scale(train))
    return lambda x: np.asarray(-forest.score_samples(scale(x)), dtype=np.float64)


def ecod(train: Matrix, seed: int) -> MatrixDetector:
    """Sum over features of minus the log of the empirical tail: the left, the right or the skewed one, whichever most.

    Source: Li, Zhao, Hu, Botta, Ionescu and Chen, ECOD, TKDE 2022.
    """
    scale = _scaler(train)
    ordered = np.sort(scale(train), axis=0)
    n = len(ordered)
    skewed_left = ((ordered - ordered.mean(axis=0)) ** 3).mean(axis=0) < 0

    def score(x: Matrix) -> Array:
        y = scale(x)
        tails = np.zeros((3, len(y)))
        for j in range(y.shape[1]):
            left = np.searchsorted(ordered[:, j], y[:, j], side="right")
            right = n - np.searchsorted(ordered[:, j], y[:, j], side="left")
            # Half a trip where training has none: a tail is never empty.
            low, high = (-np.log(np.maximum(tail, 0.5) / n) for tail in (left, right))
            tails += np.stack([low, high, low if skewed_left[j] else high])
        return np.asarray(tails.max(axis=0))

    return score


PCA_VARIANCE: Final = 0.9  # share of the variance that the components keep


def pca(train: Matrix, seed: int) -> MatrixDetector:
    """Squared error of the reconstruction from the principal components.

    Source: Shyu, Chen, Sarinnapakorn and Chang, A Novel Anomaly Detection Scheme Based on Principal Component
    Classifier, ICDM workshop 2003.
    """
    scale = _scaler(train)
    fitted = PCA(PCA_VARIANCE, svd_solver="full", random_state=seed).fit(scale(train))

    def score(x: Matrix) -> Array:
        y = scale(x)
        return np.asarray(((fitted.inverse_transform(fitted.transform(y)) - y) ** 2).sum(axis=1), dtype=np.float64)

    return score


NEIGHBOURS: Final = 10
INDEX_ROWS: Final = 10_000  # most training trips that distances are taken to


def nearest_neighbours(train: Matrix, seed: int) -> MatrixDetector:
    """Distance to the tenth nearest training trip.

    Source: Ramaswamy, Rastogi and Shim, SIGMOD 2000.
    """
    scale = _scaler(train)
    rows = np.random.default_rng(seed).choice(len(train), min(len(train), INDEX_ROWS), replace=False)
    index = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(scale(train[rows]))
    return lambda x: np.asarray(index.kneighbors(scale(x))[0][:, -1], dtype=np.float64)


def _boosting(parts: Sequence[Matrix], honest: Matrix, seed: int) -> MatrixDetector:
    x = np.concatenate([honest, *parts])
    label = np.repeat([False, True], [len(honest), len(x) - len(honest)])
    trees = HistGradientBoostingClassifier(learning_rate=0.1, max_iter=100, early_stopping=False, random_state=seed)
    trees.fit(x, label)
    return lambda y: np.asarray(trees.decision_function(y), dtype=np.float64)


TAUGHT_SHARE: Final = 0.3  # of the trips planted into, and of those corrupted


def boosting_on_corruption(train: Columns, usual: Statistics, kinds: Sequence[str], seed: int) -> MatrixDetector:
    """Gradient boosting that was shown corruption of random fields and no kind of fraud."""
    corrupted = fraud.corrupt(train, TAUGHT_SHARE, seed)
    return _boosting(
        [features.build(take(corrupted.columns, corrupted.label), usual)], features.build(train, usual), seed
    )


def boosting_on_fraud(train: Columns, usual: Statistics, kinds: Sequence[str], seed: int) -> MatrixDetector:
    """Gradient boosting that was shown planted fraud of these kinds and nothing else."""
    planted = fraud.plant(train, TAUGHT_SHARE, seed, kinds)
    return _boosting([features.build(take(planted.columns, planted.label), usual)], features.build(train, usual), seed)


def boosting_on_both(train: Columns, usual: Statistics, kinds: Sequence[str], seed: int) -> MatrixDetector:
    """Gradient boosting that was shown what the head was shown: planted fraud and corruption."""
    shown = (fraud.plant(train, TAUGHT_SHARE, seed, kinds), fraud.corrupt(train, TAUGHT_SHARE, seed + 1))
    parts = [features.build(take(part.columns, part.label), usual) for part in shown]
    return _boosting(parts, features.build(train, usual), seed)


PERCENTILE: Final = 95.0  # of the training scores: the threshold that is usually shown with the autoencoder
BASELINES: Final[dict[str, Callable[[Columns, int], Detector]]] = {
    "isolation forest": isolation_forest,
    "five-feature autoencoder": five_feature_autoencoder,
}
ON_FEATURES: Final[dict[str, Callable[[Matrix, int], MatrixDetector]]] = {
    "isolation forest, all features": isolation_forest_on_features,
    "ECOD, all features": ecod,
    "PCA reconstruction, all features": pca,
    "nearest neighbours, all features": nearest_neighbours,
}
TAUGHT: Final[dict[str, Callable[[Columns, Statistics, Sequence[str], int], MatrixDetector]]] = {
    "boosting, taught corruption only": boosting_on_corruption,
    "boosting, taught fraud only": boosting_on_fraud,
    "boosting, taught as the head": boosting_on_both,
}


def unlabelled(train: Columns, usual: Statistics, seed: int) -> dict[str, Rival]:
    """Every detector that is fitted on trips alone, as they come."""
    x = features.build(train, usual)
    with threadpool_limits(1):
        rivals = {name: _of_columns(fit(train, seed)) for name, fit in BASELINES.items()}
        return rivals | {name: _of_matrix(fit(x, seed)) for name, fit in ON_FEATURES.items()}


def taught(train: Columns, usual: Statistics, seed: int, kinds: Sequence[str] = training.TAUGHT) -> dict[str, Rival]:
    """Every detector that is shown fraud of these kinds, or corruption, on the model's features."""
    with threadpool_limits(1):
        return {name: _of_matrix(fit(train, usual, kinds, seed)) for name, fit in TAUGHT.items()}


def sum_of_surprises(scorer: scoring.Scorer) -> Rival:
    """The autoencoder without its head: each field's surprise as a rarity, added up."""

    def score(columns: Columns, x: Matrix) -> Array:
        surprise = scoring.raw_scores(scorer.model, x).surprise
        return np.asarray(scorer.calibration.rarities(surprise).sum(axis=1))

    return score


# One thread: where other work shares the cores, threads that wait for each other cost up to ten times what they add.
def _of_columns(detector: Detector) -> Rival:
    def score(columns: Columns, x: Matrix) -> Array:
        with threadpool_limits(1):
            return detector(columns)

    return score


def _of_matrix(detector: MatrixDetector) -> Rival:
    def score(columns: Columns, x: Matrix) -> Array:
        with threadpool_limits(1):
            return detector(x)

    return score
