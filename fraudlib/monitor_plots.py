"""Figures of the monitoring notebook; the style and the colours are those of `plots`."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes

from fraudlib.monitor import LITTLE, MUCH, SCORE, SCORE_EDGES, Watch
from fraudlib.plots import BLUE, GREY, ORANGE, RED, SKY, title_over_legend


def moved(frame: pd.DataFrame, most: int, origin: str, ax: Axes) -> None:
    """Stability index of the features that moved most, with the bounds of little and much.

    Parameters
    ----------
    frame : as `Watch.moved` gives it. most : number of features.
    """
    shown = frame.head(most)
    index = np.maximum(shown["stability index"], 1e-4)
    hues = [RED if value > MUCH else ORANGE if value > LITTLE else BLUE for value in index]
    ax.hlines(shown.index, 1e-4, index, color=GREY, lw=0.8)
    ax.scatter(index, shown.index, c=hues, zorder=3)
    ax.axvline(LITTLE, color=ORANGE, ls="--", lw=1, label=f"{LITTLE:g}: no longer the same")
    ax.axvline(MUCH, color=RED, ls=":", lw=1.2, label=f"{MUCH:g}: much has changed")
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="population stability index", xlim=(1e-3, max(1.5 * index.max(), 0.5)))
    title_over_legend(ax, f"Which features moved since training? ({origin})", ncols=2)


def bins(found: Watch, names: Sequence[str], axes: Sequence[Axes]) -> None:
    """Share of trips in each bin of the reference, then and now; the last bar is of the missing values."""
    shares = found.whole.drift.shares()
    for ax, name in zip(axes, names, strict=True):
        live, then = shares[name]
        at = np.arange(len(live))
        edges = [f"{edge:.3g}" for edge in found.bundle.reference[name]["edges"]]
        bounds = ["", *edges, "none"] if len(edges) else ["any", "none"]
        ax.bar(at - 0.2, 100 * then, 0.4, color=GREY, label="training" if name != SCORE else "validation")
        ax.bar(at + 0.2, 100 * live, 0.4, color=ORANGE, label="now")
        ax.set_xticks(at, [f"from\n{text}" if text not in ("", "any", "none") else text or "below" for text in bounds])
        ax.tick_params(axis="x", labelsize=7)
        ax.set(ylabel="trips, %", title=name)
    axes[0].legend(loc="best")


def over_time(frame: pd.DataFrame, unit: str, origin: str, ax: Axes) -> None:
    """Stability index of features (rows) by slice of time (columns).

    Parameters
    ----------
    frame : as `Watch.over_time` gives it.
    """
    scale = colors.LogNorm(0.01, 1.0, clip=True)
    image = ax.imshow(np.maximum(frame.T.to_numpy(dtype=float), 1e-4), aspect="auto", cmap="cividis", norm=scale)
    ax.set_yticks(np.arange(frame.shape[1]), frame.columns)
    step = -(-len(frame) // 10)
    ax.set_xticks(np.arange(0, len(frame), step), [_short(start, unit) for start in frame.index[::step]])
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label="stability index", extend="both")
    ax.set(xlabel=unit, title=f"Did it come at once, or creep? Each {unit} against training ({origin})")


def _short(start: object, unit: str) -> str:
    text = str(pd.Timestamp(str(start)))
    return text[5:10] if unit == "day" else text[5:16]


def scores(found: Watch, origin: str, ax: Axes) -> None:
    """Share of trips above each score now, against the reference of the validation trips, with the threshold."""
    above = 100 * (1 - np.cumsum(found.scores)[:-1] / found.scores.sum())
    reference = found.bundle.reference[SCORE]
    then = 100 * (1 - np.cumsum(reference["shares"])[:-1])
    ax.plot(SCORE_EDGES, np.maximum(above, 1e-3), color=ORANGE, label="now")
    ax.plot(reference["edges"], then, "o", ms=4, color=GREY, label="validation, by tenths")
    ax.plot(SCORE_EDGES, 100 * 10.0**-SCORE_EDGES, color=GREY, lw=0.8, ls=":", label="as calibrated: honest trips")
    threshold = found.bundle.scorer.threshold
    ax.axvline(threshold, color="black", lw=1.2, label=f"threshold {threshold:.2f}")
    ax.set(yscale="log", xlabel="anomaly score", ylabel="trips above it, %", xlim=(0, 6), ylim=(1e-3, 130))
    ax.set_title(f"Do the scores mean what they meant? ({origin})")
    ax.legend(loc="upper right")


def volume(frame: pd.DataFrame, budget: float, unit: str, origin: str, ax: Axes) -> None:
    """Share of trips flagged in each slice with its interval, against the budget.

    Parameters
    ----------
    frame : as `Watch.volume` gives it. budget : share of honest trips that may be flagged.
    """
    start = frame.index.to_numpy()
    ax.fill_between(start, 100 * frame.low, 100 * frame.high, color=SKY, alpha=0.3, label="chance alone, 95 %")
    ax.plot(start, 100 * frame.share, color=BLUE, marker=".", label=f"flagged, each {unit}")
    ax.axhline(100 * budget, color="black", lw=1.2, label=f"budget of honest trips, {100 * budget:g} %")
    ax.set(ylim=(0, None), ylabel="trips flagged, %")
    ax.tick_params(axis="x", rotation=20)
    title_over_legend(ax, f"Are there more alerts than staff was told? ({origin})", ncols=3)


def reasons(counts: Counter[str], origin: str, ax: Axes) -> None:
    """What the alerts were first about."""
    names, values = zip(*counts.most_common(10), strict=True)
    ax.barh(names, 100 * np.array(values) / counts.total(), color=BLUE)
    ax.invert_yaxis()
    ax.set(xlabel="alerts whose first reason it is, %")
    ax.set_title(f"Is one field behind most alerts? ({origin})")
