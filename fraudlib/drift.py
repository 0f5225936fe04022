"""How far the live values of each feature have moved from those that the bundle was made with.

The population stability index of Siddiqi ("Credit Risk Scorecards", 2006): the sum over bins of (live - reference) *
ln(live / reference). Below 0.1 little has changed, above 0.25 much has.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SLOTS: Final = 12  # parts of the window; the oldest is dropped as a whole
FLOOR: Final = 1e-4  # least share of a bin, so that one that is empty on one side does not count infinitely
MIN_ROWS: Final = 500  # below, chance alone moves an index of ten bins by more than 0.02


class Drift:
    """Histograms of a sliding window against a reference.

    Parameters
    ----------
    reference : name -> {"edges": inner bounds, "shares": of the bins, "missing": share of missing values}, as
        `bundle.reference_histograms` makes it; a value at a bound lies above it.
    names : columns of what is added; those without a reference are left out.
    window_seconds : length of the window.
    clock : seconds, monotonic.
    """

    def __init__(
        self,
        reference: Mapping[str, Any],
        names: Sequence[str],
        window_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._columns = [column for column, name in enumerate(names) if name in reference]
        self.names = [names[column] for column in self._columns]
        known = [reference[name] for name in self.names]
        bounds = max((len(r["edges"]) for r in known), default=0)
        self._bounds = np.array([len(r["edges"]) for r in known], dtype=np.int64)
        self._edges = np.full((len(known), bounds), np.inf)
        self._expected = np.zeros((len(known), bounds + 2))  # the last bin is of the missing values
        for row, r in enumerate(known):
            self._edges[row, : len(r["edges"])] = r["edges"]
            self._expected[row, : len(r["shares"])] = r["shares"]
            self._expected[row, -1] = r["missing"]
        # Bins that this feature does not have count on neither side.
        self._exists = np.arange(bounds + 2)[None, :] <= self._bounds[:, None]
        self._exists[:, -1] = True
        self._slot_seconds, self._clock = window_seconds / SLOTS, clock
        self._slots: deque[tuple[float, int, NDArray[np.int64]]] = deque()

    def add(self, x: NDArray[np.floating[Any]]) -> None:
        """Count rows of shape (n, len(names)), NaN where missing."""
        x = x[:, self._columns].astype(np.float64)
        features, bins = self._expected.shape
        if not len(x) or not features:
            return
        place = np.minimum((x[:, :, None] >= self._edges).sum(axis=2), self._bounds)
        place[np.isnan(x)] = bins - 1
        flat = np.bincount((place + np.arange(features) * bins).ravel(), minlength=features * bins)
        counts, now = flat.reshape(features, bins), self._clock()
        self._forget(now)
        if self._slots and now - self._slots[-1][0] < self._slot_seconds:
            start, rows, so_far = self._slots[-1]
            self._slots[-1] = (start, rows + len(x), so_far + counts)
        else:
            self._slots.append((now, len(x), counts))

    def _forget(self, now: float) -> None:
        while self._slots and now - self._slots[0][0] > self._slot_seconds * SLOTS:
            self._slots.popleft()

    @property
    def rows(self) -> int:
        """Rows in the window."""
        self._forget(self._clock())
        return sum(rows for _, rows, _ in self._slots)

    def shares(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Share of each bin, the missing values last, live and in the reference; empty where there are no rows."""
        if not (rows := self.rows):
            return {}
        live = np.sum([counts for _, _, counts in self._slots], axis=0) / rows
        return {
            name: (live[i, self._exists[i]], self._expected[i, self._exists[i]]) for i, name in enumerate(self.names)
        }

    def index(self) -> dict[str, float]:
        """Population stability index of each column; empty while the window has too few rows."""
        if self.rows < MIN_ROWS:
            return {}
        floored = {name: [np.maximum(part, FLOOR) for part in pair] for name, pair in self.shares().items()}
        return {name: float(((live - old) * np.log(live / old)).sum()) for name, (live, old) in floored.items()}

    def gap(self) -> dict[str, float]:
        """Largest gap between the two cumulative shares of each column; empty while the window has too few rows.

        Kolmogorov and Smirnov's distance at the reference's bounds, so at most the one of all values.
        """
        if self.rows < MIN_ROWS:
            return {}
        return {name: float(np.abs(np.cumsum(live - old)).max()) for name, (live, old) in self.shares().items()}
