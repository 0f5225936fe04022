"""Figures: each is readable on its own, on any data."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.axes import Axes

from fraudlib import plots, tariff

matplotlib.use("agg")
import matplotlib.pyplot as plt

RNG = np.random.default_rng(5)
SCORE, LABEL = np.append(RNG.exponential(0.5, 900), RNG.normal(3, 1, 100)), np.repeat([False, True], [900, 100])
DAY = np.datetime64("2023-01-01") + RNG.integers(0, 20, 500)
RECALL = np.linspace(0, 1, 50)
KINDS = {
    "long_haul": {"recall": {"value": 0.6, "low": 0.5, "high": 0.7}, "easy": False},
    "flat_fare": {"recall": {"value": 1.0, "low": 0.9, "high": 1.0}, "easy": True},
}
SHARES = {"train": {"a": 0.1, "b": 0.0, "c": 1.0}, "test": {"a": 0.2, "b": 0.0, "c": 1.0}}
PART = {"value": 0.5, "low": 0.4, "high": 0.7}
RATES = {"test": {"value": 0.01, "low": 0.008, "high": 0.013}}
FIELDS = ["fare", "tip"]

FIGURES = {
    "volume_by_day": ({"train": DAY, "valid": DAY + 30},),
    "missing_shares": (SHARES,),
    "fare_against_miles": (RNG.gamma(2, 2, 500), RNG.gamma(2, 8, 500), tariff.TARIFFS[-1]),
    "detours": ({"train": RNG.lognormal(0, 0.3, 500), "valid": RNG.lognormal(0, 0.3, 500)},),
    "learning_curves": ([(1.0, 1.1), (0.5, 0.6)], "loss, nats"),
    "explained": (FIELDS, np.array([0.7, 0.8]), np.array([0.2, 0.7])),
    "surprise_quantiles": (FIELDS, RNG.exponential(1, (500, 2))),
    "score_histogram": (SCORE, LABEL, 2.0),
    "budget_kept": (np.array([0.01, 0.1]), np.array([0.012, 0.09]), 1000),
    "precision_recall": ({"model": (RECALL, 1 - RECALL / 2), "other": (RECALL, 1 - RECALL)}, (0.8, 0.6), 0.01),
    "recall_by_kind": (KINDS,),
    "false_positive_rate": (RATES, 0.01),
    "detectors": ({"ours": {"head": PART}, "without labels": {"forest": PART, "neighbours": PART}},),
    "families_left_out": ({"tips": {"recall": PART, "recall_taught": PART}},),
}


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        plots.use_style()
        yield
    plt.close("all")


@pytest.fixture
def ax() -> Axes:
    return plt.subplots()[1]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(name: str, ax: Axes) -> None:
    """Title that asks something, source of the data, and a unit or meaning on each axis that is not made of names."""
    getattr(plots, name)(*FIGURES[name], "simulated sample", ax=ax)
    title = ax.get_title(loc="left")
    assert "?" in title
    assert "simulated sample" in title
    has_names = any(t.get_text().replace(" ", "_").isidentifier() for t in ax.get_yticklabels())
    assert ax.get_ylabel() or has_names
    assert ax.get_xlabel() or name == "volume_by_day"
    ax.figure.canvas.draw()


def test_thresholds_are_drawn(ax: Axes) -> None:
    """The histogram draws the threshold where it is, and each panel of the choices draws all of them."""
    plots.score_histogram(SCORE, LABEL, 2.0, "simulated sample", ax)
    assert 2.0 in [line.get_xdata()[0] for line in ax.lines]
    axes = plt.subplots(4, 1)[1]
    curves = {"flagged": np.linspace(1, 0, 5), "alerts": np.linspace(9, 0, 5), "cost": np.ones(5), "found": np.ones(5)}
    plots.threshold_choices(np.arange(5.0), curves, {"budget": 2.0, "cost": 3.0}, "cost", "simulated sample", axes)
    for panel in axes:
        assert {2.0, 3.0} <= {line.get_xdata()[0] for line in panel.lines if len(line.get_xdata())}
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["budget: 2.00", "cost: 3.00 (chosen)"]


def test_only_blank_columns_are_shown(ax: Axes) -> None:
    """Columns that are always or never there say nothing and are left out."""
    plots.missing_shares(SHARES, "simulated sample", ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a"]


def test_no_planted_fraud_is_no_error(ax: Axes) -> None:
    """Honest trips alone can be drawn as well."""
    plots.score_histogram(SCORE, np.zeros(len(SCORE), dtype=bool), 2.0, "simulated sample", ax)
    assert len(ax.get_legend().get_texts()) == 2


def test_colours_differ_in_brightness_or_line() -> None:
    """Lines of one figure differ in more than hue, so that they can be told apart without colour vision."""
    lightness = [colors.rgb_to_hsv(colors.to_rgb(c))[2] for c in (plots.BLUE, plots.ORANGE, plots.PINK)]
    assert len({round(value, 2) for value in lightness}) == 3
    assert len(set(plots.LINES)) == len(plots.LINES)
