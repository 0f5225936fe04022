"""Figures of the first looks; the style and the colours are those of `plots`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from fraudlib.plots import BLUE, GREEN, GREY, LINES, ORANGE, PINK, RED, SKY, title_over_legend

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
CLOUD = 12_000  # honest trips drawn: more only blacken the picture
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def receipt(charges: Mapping[str, float], total: float, origin: str, ax: Axes) -> None:
    """Charges of one trip stacked up to its total.

    Parameters
    ----------
    charges : name -> USD, in the order of the receipt. total : USD.
    """
    ends = np.cumsum(list(charges.values()))
    y = np.arange(len(charges) + 1)
    ax.barh(y[:-1], list(charges.values()), left=np.append(0, ends[:-1]), color=SKY)
    ax.barh(y[-1:], [total], color=BLUE)
    for place, end, usd in zip(y, [*ends, total], [*charges.values(), total], strict=True):
        ax.annotate(f"{usd:.2f}", (end, place), (4, 0), textcoords="offset points", va="center")
    ax.set_yticks(y, [name.replace("_", " ") for name in (*charges, "total_amount")])
    ax.invert_yaxis()
    ax.set(xlabel="USD", title=f"Do the charges add up to what the card paid? ({origin})")


def week(pickup: NDArray[np.datetime64], origin: str, ax: Axes) -> AxesImage:
    """Trips by weekday and hour of the pickup, as a share of the busiest cell.

    Parameters
    ----------
    pickup : (n,), local time without NaT.
    """
    hours = pickup.astype("datetime64[h]").astype(np.int64)
    count = np.bincount((hours // 24 + 3) % 7 * 24 + hours % 24, minlength=168).reshape(7, 24)
    image = ax.imshow(100 * count / count.max(), aspect="auto", cmap="Blues", vmin=0, vmax=100)
    ax.set_yticks(np.arange(7), WEEKDAYS)
    ax.set(xlabel="hour of pickup, local time", xticks=range(0, 24, 3))
    ax.set_title(f"When is the city on the move? ({origin})")
    ax.grid(visible=False)
    return image


def clouds(
    honest: Mapping[str, Array],
    frauds: Mapping[str, Mapping[str, Array]],
    pairs: Sequence[tuple[str, str]],
    origin: str,
    axes: Sequence[Axes],
) -> None:
    """Honest trips as a grey cloud, some kinds of fraud drawn over it, on logarithmic axes cut to the honest trips.

    Parameters
    ----------
    honest : number -> values, (n,). frauds : kind -> number -> values. pairs : names of x and y, one pair an axes.
    """
    for ax, (x, y) in zip(axes, pairs, strict=True):
        some = slice(None, None, max(1, len(honest[x]) // CLOUD))
        ax.plot(honest[x][some], honest[y][some], ",", color=GREY, alpha=0.7, rasterized=True)
        ax.plot([], [], "o", ms=3, color=GREY, label="honest")
        for (name, bad), colour, marker in zip(frauds.items(), (RED, BLUE, GREEN, ORANGE), "osD^", strict=False):
            ax.plot(bad[x], bad[y], marker, ms=3.5, color=colour, alpha=0.8, label=name.replace("_", " "))
        ends = [np.nanquantile(honest[name][honest[name] > 0], [0.01, 0.999]) for name in (x, y)]
        limits = [(low / 1.5, 4 * high) for low, high in ends]
        ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y, xlim=limits[0], ylim=limits[1])
    axes[0].set_title(f"Which frauds leave the cloud of honest trips? ({origin})")
    figure = axes[0].get_figure(root=True)
    if figure is not None:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(frauds))


def rules_and_model(
    kinds: Sequence[str], rule: Array, model: Array, numbers: Sequence[str], origin: str, ax: Axes
) -> None:
    """Share found of each kind by the best rule on one number, and by the model, at the same false positive rate.

    Parameters
    ----------
    rule, model : (k,), shares. numbers : what each rule looks at, (k,).
    """
    y = np.arange(len(kinds))
    ax.hlines(y, 100 * rule, 100 * model, color=GREY, lw=1)
    ax.plot(100 * rule, y, "o", color=ORANGE, label="best rule on one number")
    ax.plot(100 * model, y, "D", color=BLUE, label="model")
    ax.set_yticks(y, [f"{kind.replace('_', ' ')}  ({number})" for kind, number in zip(kinds, numbers, strict=True)])
    ax.invert_yaxis()
    ax.set(xlabel="found at one false positive in a hundred, %", xlim=(-2, 102))
    title_over_legend(ax, f"Would a rule on one number do? ({origin})", ncols=2)


def what_if(curves: Mapping[str, tuple[Array, Array]], threshold: float, origin: str, ax: Axes) -> None:
    """Score of one trip while a field of it is scaled.

    Parameters
    ----------
    curves : field -> (factor, score), (k,) each.
    """
    colours: Sequence[Any] = (BLUE, ORANGE, GREEN, PINK)
    for (name, (factor, score)), colour, style in zip(curves.items(), colours, LINES, strict=False):
        ax.plot(factor, score, style, color=colour, label=name.replace("_", " "))
    ax.axhline(threshold, color="black", lw=1.2)
    ax.annotate(
        f"threshold {threshold:.2f}",
        (1, threshold),
        (-4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    ax.axvline(1, color=GREY, lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="field as a multiple of what it was", ylabel="anomaly score")
    ax.set_xticks([0.5, 0.7, 1, 1.5, 2, 3], ["0.5", "0.7", "1", "1.5", "2", "3"], minor=False)
    ax.xaxis.minorticks_off()
    title_over_legend(ax, f"How far may a number stray before the trip is flagged? ({origin})", ncols=4)
