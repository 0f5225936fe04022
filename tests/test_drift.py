"""Drift: an index that is near zero while nothing changes, large when something does, and forgets the past."""

from typing import Any

import numpy as np
import pytest

from fraudlib.drift import MIN_ROWS, SLOTS, Drift

NAMES = ["fare", "tip", "unknown", "code"]


def reference(values: np.ndarray[Any, Any], bins: int = 10) -> dict[str, Any]:
    """Edges and shares as a bundle has them."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
    missing = 1 - len(known) / len(values)
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist(), "missing": missing}


def rows(n: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Fares, tips of which a fifth is missing, a column without a reference, and a code of two values."""
    tip = np.where(rng.random(n) < 0.2, np.nan, rng.exponential(3.0, n))
    return np.column_stack([rng.lognormal(2.5, 0.5, n), tip, rng.random(n), rng.integers(1, 3, n).astype(float)])


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def drift(clock: Clock | None = None, window: float = 120.0) -> Drift:
    """Drift against 20,000 rows."""
    x = rows(20_000, np.random.default_rng(1))
    known = {name: reference(x[:, i]) for i, name in enumerate(NAMES) if name != "unknown"}
    return Drift(known, NAMES, window, clock or Clock())


def test_no_change_is_no_drift() -> None:
    """Rows of the same kind stay far below what one would look at; columns without a reference are left out."""
    measured = drift()
    measured.add(rows(4000, np.random.default_rng(2)))
    index = measured.index()
    assert list(index) == ["fare", "tip", "code"]
    assert max(index.values()) < 0.02


def test_the_index_is_siddiqis() -> None:
    """Sum over bins, the missing values being one of them, of (live - reference) * ln(live / reference)."""
    known = {"code": {"edges": [1.5], "shares": [0.5, 0.3], "missing": 0.2}}
    measured = Drift(known, ["code"], 60.0, Clock())
    measured.add(np.repeat([[1.0], [2.0], [np.nan]], [600, 300, 100], axis=0))
    expected = sum((a - e) * np.log(a / e) for a, e in ((0.6, 0.5), (0.3, 0.3), (0.1, 0.2)))
    assert measured.index()["code"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("fare", lambda x: x * 1.5),
        ("tip", lambda x: np.full_like(x, np.nan)),
        ("code", lambda x: np.ones_like(x)),
        ("fare", lambda x: np.where(x > 15, np.inf, x)),
    ],
    ids=["dearer", "missing", "one code only", "infinite"],
)
def test_a_change_is_found_where_it_is(column: str, change: Any) -> None:
    """The column that changed is far above 0.25, or, where only a bin's contents moved, the others stay low."""
    measured, x = drift(), rows(4000, np.random.default_rng(2))
    at = NAMES.index(column)
    x[:, at] = change(x[:, at])
    measured.add(x)
    index = measured.index()
    assert index[column] > 0.25
    assert all(value < 0.02 for name, value in index.items() if name != column)


def test_a_value_at_a_bound_counts_as_in_the_reference() -> None:
    """Codes lie on their bounds."""
    values = np.repeat([1.0, 2.0, 3.0], [100, 800, 100])
    measured = Drift({"code": reference(values)}, ["code"], 60.0, Clock())
    measured.add(values[:, None])
    assert measured.index()["code"] == pytest.approx(0.0, abs=1e-12)


def test_few_rows_say_nothing() -> None:
    """Chance alone would look like drift."""
    measured = drift()
    measured.add(rows(MIN_ROWS - 1, np.random.default_rng(2)))
    assert measured.index() == {}
    measured.add(rows(1, np.random.default_rng(3)))
    assert measured.index() != {}
    measured.add(np.empty((0, len(NAMES))))
    assert measured.rows == MIN_ROWS


def test_the_window_forgets() -> None:
    """What is older than the window counts no longer, part by part."""
    clock = Clock()
    measured, rng = drift(clock, window=120.0), np.random.default_rng(2)
    x = rows(1000, rng)
    x[:, 0] *= 3
    measured.add(x)
    assert measured.index()["fare"] > 0.25
    for minute in range(1, 4):
        clock.now = 60.0 * minute + 1
        measured.add(rows(1000, rng))
    assert measured.rows == 3000
    assert measured.index()["fare"] < 0.03
    clock.now = 1e6
    assert (measured.rows, measured.index()) == (0, {})


def test_memory_does_not_grow_with_the_rows() -> None:
    """However often rows are added, the window is kept in a dozen parts."""
    clock = Clock()
    measured, x = drift(clock, window=12.0), rows(10, np.random.default_rng(2))
    for step in range(1000):
        clock.now = step / 20
        measured.add(x)
    assert len(measured._slots) <= SLOTS + 1


def test_the_gap_is_the_largest_between_cumulative_shares() -> None:
    """A tenth of the trips moved from the first bin to the last: the curves lie a tenth apart."""
    reference = {"fare": {"edges": [1.0, 2.0], "shares": [0.5, 0.3, 0.2], "missing": 0.0}}
    drift = Drift(reference, ["fare"], 60.0, clock=lambda: 0.0)
    drift.add(np.repeat([0.0, 1.5, 3.0], [400, 300, 300])[:, None])
    assert drift.gap() == pytest.approx({"fare": 0.1})
    live, then = drift.shares()["fare"]
    assert live.tolist() == [0.4, 0.3, 0.3, 0.0]
    assert then.tolist() == [0.5, 0.3, 0.2, 0.0]


def test_the_gap_waits_for_enough_rows() -> None:
    """Like the index, it is silent where chance alone would move it."""
    drift = Drift({"fare": {"edges": [1.0], "shares": [0.5, 0.5], "missing": 0.0}}, ["fare"], 60.0)
    assert drift.shares() == {}
    drift.add(np.zeros((10, 1)))
    assert drift.gap() == {}
