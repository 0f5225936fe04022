"""Figures of a live stack; the style and the colours are those of `plots`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fraudlib.plots import BLUE, GREY, ORANGE, RED, title_over_legend


def scores(found: pd.DataFrame, threshold: float, origin: str, ax: Axes) -> None:
    """Score of each trip so far, in the order sent, with the threshold; draws over what was there.

    Parameters
    ----------
    found : as `session.Stream.scores` gives them.
    """
    ax.clear()
    honest, planted = found[~found.is_planted], found[found.is_planted]
    ax.plot(honest.trip, honest.anomaly_score, ".", ms=2, color=GREY, label="honest")
    ax.plot(planted.trip, planted.anomaly_score, "o", ms=4, color=RED, label="planted fraud")
    ax.axhline(threshold, color="black", lw=1.2, label=f"threshold {threshold:.2f}")
    highest = float(found.anomaly_score.max()) if len(found) else 0.0
    ax.set(xlabel="trip, in the order sent", ylabel="anomaly score", ylim=(0, max(5.5, 1.05 * highest)))
    title_over_legend(ax, f"What is above the line? ({origin})", ncols=3)


def pace(found: pd.DataFrame, origin: str, axes: Sequence[Axes]) -> None:
    """Scores a second and their latency so far, one panel each; draws over what was there.

    Parameters
    ----------
    found : as `session.Stream.scores` gives them. axes : two of them.
    """
    for ax in axes:
        ax.clear()
    rate, wait = axes
    whole = found.second.astype(int)
    per_second = found[whole < whole.max()].groupby(whole)  # the last second is not over yet
    count = per_second.size()
    rate.plot(count.index + 0.5, count, marker=".", color=BLUE)
    rate.set(ylabel="scores a second", ylim=(0, 1.2 * max(count.max(), 1) if len(count) else 1))
    rate.set_title(f"Does it keep up? ({origin})")
    for share, style, colour in ((0.5, "-", BLUE), (0.99, "--", ORANGE)):
        latency = per_second.latency_ms.quantile(share)
        wait.plot(latency.index + 0.5, latency, style, marker=".", color=colour, label=f"p{100 * share:g}")
    wait.set(ylim=(0, None), ylabel="POST to score, ms", xlabel="seconds since the start")
    wait.legend(loc="upper right", ncols=2)


def latency(scores: pd.DataFrame, origin: str, ax: Axes) -> None:
    """Share of scores that came within a time, with the median and the 99th percentile named."""
    ordered = np.sort(scores.latency_ms)
    ax.plot(ordered, 100 * np.arange(1, len(ordered) + 1) / len(ordered), color=BLUE)
    for share, colour in ((0.5, BLUE), (0.99, ORANGE)):
        value = float(np.quantile(ordered, share))
        ax.axvline(value, color=colour, ls=":", label=f"p{100 * share:g}: {value:.1f} ms")
    ax.set(xscale="log", xlabel="POST to score, ms", ylabel="scores that came within, %", ylim=(0, 101))
    ax.set_title(f"How long does a passenger's card wait? ({origin})")
    ax.legend()
