"""Figures of the notebooks: one question each, drawn onto an axes, in one quiet style for every colour vision.

Functions take plain arrays, draw onto `ax` and give nothing back; titles say what to look for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fraudlib import tariff

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Interval = Mapping[str, float]

# Okabe and Ito's palette: told apart with every common colour vision.
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
GREY: Final = "#8a8f98"
SPLIT_COLOURS: Final = {"train": BLUE, "valid": ORANGE, "test": GREEN}
LINES: Final = ("-", "--", ":", "-.")


def use_style(dpi: int = 72) -> None:
    """Set matplotlib's style for a notebook: no frame, thin grid, small file."""
    mpl.rcParams.update(
        {
            "figure.figsize": (8.0, 3.6),
            "figure.dpi": dpi,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, RED]),
            "grid.color": "#e6e8eb",
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "font.size": 10,
        }
    )


def title_over_legend(ax: Axes, title: str, ncols: int) -> None:
    """Title and legend above the axes, where no bar or dot can lie under them."""
    rows = -(-len(ax.get_legend_handles_labels()[0]) // ncols)
    ax.set_title(title, pad=6 + 16 * rows)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, borderaxespad=0.2)


def volume_by_day(days: Mapping[str, NDArray[np.datetime64]], origin: str, ax: Axes) -> None:
    """Trips per day of each split.

    Parameters
    ----------
    days : split -> day of each pickup, (n,), datetime64[D]; days with hardly a trip (reset clocks) are left out.
    """
    for split, values in days.items():
        seen, count = np.unique(values[~np.isnat(values)], return_counts=True)
        usual = count > 0.02 * np.median(count[count > 10]) if (count > 10).any() else count > 0
        ax.plot(seen[usual], count[usual], color=SPLIT_COLOURS.get(split, GREY), marker=".", label=split)
    ax.set(
        ylim=(0, None),
        ylabel="trips a day",
        title=f"Do the splits follow each other without a gap or a jump? ({origin})",
    )
    ax.legend(ncols=3)
    ax.tick_params(axis="x", rotation=20)


def missing_shares(shares: Mapping[str, Mapping[str, float]], origin: str, ax: Axes) -> None:
    """Share of rows without a value, by column and split; columns that are always or never there are left out.

    Parameters
    ----------
    shares : split -> column -> share.
    """
    columns = [c for c in next(iter(shares.values())) if any(0 < part[c] < 1 for part in shares.values())]
    height = 0.8 / len(shares)
    for i, (split, part) in enumerate(shares.items()):
        y = np.arange(len(columns)) + (i - (len(shares) - 1) / 2) * height
        ax.barh(y, [100 * part[c] for c in columns], height, color=SPLIT_COLOURS.get(split, GREY), label=split)
    ax.set_yticks(np.arange(len(columns)), columns)
    ax.invert_yaxis()
    ax.set_xlabel("rows without a value, %")
    title_over_legend(ax, f"Which columns are blank together? ({origin})", ncols=len(shares))


def fare_against_miles(miles: Array, fare: Array, rate: tariff.Tariff, origin: str, ax: Axes) -> None:
    """Metered fares of code-1 trips against miles, with the least that the meter can show and slow traffic's most.

    Parameters
    ----------
    miles, fare : (n,), miles and USD. rate : the tariff in force.
    """
    near = (miles >= 0) & (miles <= 15) & (fare >= 0) & (fare <= 90)
    ax.hexbin(miles[near], fare[near], gridsize=(70, 32), bins="log", mincnt=1, cmap="Greys", extent=(0, 15, 0, 90))
    x = np.linspace(0, 15, 50)
    low = rate.base + rate.per_mile * x
    ax.plot(x, low, color=BLUE, label="meter, miles alone")
    ax.plot(x, low + rate.per_minute * x / 6 * 60, "--", color=ORANGE, label="meter, at 6 mph throughout")
    ax.set(xlabel="distance on the meter, miles", ylabel="fare, USD", xlim=(0, 15), ylim=(0, 90))
    ax.set_title(f"What lies outside the tariff's envelope? ({origin})")
    ax.legend(loc="lower right")


def detours(ratio: Mapping[str, Array], origin: str, ax: Axes) -> None:
    """Distribution of the distance over the median of the same zone pair.

    Parameters
    ----------
    ratio : split -> distance over the training median of its pair, (n,).
    """
    for (split, values), style in zip(ratio.items(), LINES, strict=False):
        ordered = np.sort(values[np.isfinite(values)])
        over = 1 - np.arange(len(ordered)) / len(ordered)
        ax.plot(ordered, over, style, color=SPLIT_COLOURS.get(split, GREY), label=split)
    for share in (0.1, 0.01):
        ax.axhline(share, color=GREY, lw=0.8, ls=":")
    ax.set(
        xlim=(0.8, 4),
        ylim=(1e-3, 1),
        yscale="log",
        xlabel="distance over the pair's median",
        ylabel="share of trips beyond",
    )
    ax.set_title(f"How far do honest detours reach into what long-hauling looks like? ({origin})")
    ax.legend()


def learning_curves(curve: Sequence[tuple[float, float]], loss: str, origin: str, ax: Axes) -> None:
    """Loss by epoch on training and validation trips.

    Parameters
    ----------
    curve : (training, validation) of each epoch. loss : its name and unit.
    """
    epochs = np.arange(1, len(curve) + 1)
    ax.plot(epochs, [train for train, _ in curve], color=BLUE, marker=".", label="training")
    ax.plot(epochs, [valid for _, valid in curve], "--", color=ORANGE, marker=".", label="validation")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=loss, title=f"Has it stopped learning, and does it hold on other trips? ({origin})")
    ax.legend()


def explained(fields: Sequence[str], baseline: Array, model: Array, origin: str, ax: Axes) -> None:
    """Typical miss of each hidden field: the field's own median against the model, in the field's unit.

    Parameters
    ----------
    baseline, model : (p,), mean absolute error in standard deviations.
    """
    y = np.arange(len(fields))
    ax.hlines(y, model, baseline, color=GREY, lw=1)
    ax.plot(baseline, y, "o", color=GREY, label="always the median")
    ax.plot(model, y, "o", color=BLUE, label="predicted from the other fields")
    ax.set_yticks(y, fields)
    ax.invert_yaxis()
    ax.set(xlabel="mean absolute error, standard deviations", xlim=(0, None))
    title_over_legend(ax, f"Which hidden fields can the others tell? ({origin})", ncols=2)


def surprise_quantiles(fields: Sequence[str], surprise: Array, origin: str, ax: Axes) -> None:
    """Median to 99.9 % of each field's surprise on honest trips.

    Parameters
    ----------
    surprise : (n, p), residuals in spreads, or -log p for codes; NaN where the field is missing.
    """
    y = np.arange(len(fields))
    for level, marker, colour in ((0.5, "|", GREY), (0.9, "o", SKY), (0.99, "s", BLUE), (0.999, "D", ORANGE)):
        ax.plot(np.nanquantile(surprise, level, axis=0) + 0.01, y, marker, color=colour, label=f"{100 * level:g} %")
    ax.set_yticks(y, fields)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="surprise, in the prediction's own spreads (codes: nats)")
    title_over_legend(ax, f"Which fields have long honest tails? ({origin})", ncols=4)


def score_histogram(score: Array, label: Bools, threshold: float, origin: str, ax: Axes) -> None:
    """Anomaly scores of honest trips and planted frauds, as shares of each, with the threshold drawn."""
    edges = np.linspace(0, max(float(np.quantile(score, 0.9999)), threshold) * 1.05, 61)
    for mine, name, colour in ((~label, "honest", GREY), (label, "planted", RED)):
        if mine.any():
            weights = np.full(int(mine.sum()), 100 / mine.sum())
            ax.hist(
                np.clip(score[mine], 0, edges[-1]),
                edges.tolist(),
                weights=weights,
                color=colour,
                alpha=0.65,
                label=name,
            )
    ax.axvline(threshold, color="black", lw=1.2, label=f"threshold {threshold:.2f}")
    ax.set(yscale="log", xlabel="anomaly score (2 is one honest trip in a hundred)", ylabel="share, %")
    ax.set_title(f"How well does the threshold part them? ({origin})")
    ax.set_ylim(top=8 * ax.get_ylim()[1])  # room for the legend
    ax.legend(ncols=3, loc="upper right")


def budget_kept(share: Array, realised: Array, n: int, origin: str, ax: Axes) -> None:
    """Realised against budgeted false positive rate on trips that the calibration never saw.

    Parameters
    ----------
    share, realised : (k,). n : number of trips behind each realised rate.
    """
    noise = 1.96 * np.sqrt(share * (1 - share) / n)
    ax.fill_between(
        100 * share,
        100 * np.maximum(share - noise, 1e-6),
        100 * (share + noise),
        color=SKY,
        alpha=0.3,
        label="chance alone, 95 %",
    )
    ax.plot(100 * share, 100 * share, color=GREY, lw=1, label="as promised")
    ax.plot(100 * share, 100 * realised, color=BLUE, marker=".", label="later days, calibrated on earlier ones")
    ax.set(xscale="log", yscale="log", xlabel="budget, % of honest trips", ylabel="flagged, % of honest trips")
    ax.set_title(f"Does a budget hold on the days that follow? ({origin})")
    ax.legend()


def threshold_choices(
    threshold: Array,
    curves: Mapping[str, Array],
    chosen: Mapping[str, float],
    choice: str,
    origin: str,
    axes: Sequence[Axes],
) -> None:
    """False positives, alerts a day, cost and recall by threshold, one panel each, with the line that each would draw.

    Parameters
    ----------
    threshold : (k,). curves : axis label -> (k,), one per axes; the first two span powers of ten.
    chosen : name -> threshold.
    choice : the name that became the threshold; its line is thick.
    """
    colours = dict(zip(chosen, (ORANGE, GREEN, RED, PINK), strict=False))
    styles = dict(zip(chosen, LINES, strict=False))
    for i, (ax, (name, values)) in enumerate(zip(axes, curves.items(), strict=True)):
        ax.plot(threshold, values, color=BLUE)
        if i < 2:
            ax.set_yscale("log", nonpositive="mask")  # a share of nothing has no logarithm
        else:
            ax.set_ylim(bottom=0)
        ax.set_ylabel(name)
        for way, value in chosen.items():
            ax.axvline(value, color=colours[way], ls=styles[way], lw=2.5 if way == choice else 1.3)
    for way, value in chosen.items():
        label = f"{way}: {value:.2f}" + (" (chosen)" if way == choice else "")
        axes[0].plot([], [], color=colours[way], ls=styles[way], lw=2.5 if way == choice else 1.3, label=label)
    title_over_legend(axes[0], f"Where would budget, staff and cost each draw the line? ({origin})", ncols=2)
    axes[-1].set_xlabel("threshold on the anomaly score")


def precision_recall(
    curves: Mapping[str, tuple[Array, Array]], point: tuple[float, float], prevalence: float, origin: str, ax: Axes
) -> None:
    """Precision over recall of the model and the baselines, with the threshold's point.

    Parameters
    ----------
    curves : name -> (recall, precision), (m,) each; the first is the model. point : (recall, precision).
    """
    for i, (name, (recall, precision)) in enumerate(curves.items()):
        keep = np.unique(np.searchsorted(recall, np.linspace(0.002, 1, 300)).clip(0, len(recall) - 1))
        ax.plot(
            100 * recall[keep],
            100 * precision[keep],
            LINES[i % 4],
            color=(BLUE, ORANGE, PINK, GREEN)[i % 4],
            lw=2.0 if i == 0 else 1.5,
            label=name,
        )
    ax.plot(100 * point[0], 100 * point[1], "o", color="black", label="at the threshold")
    ax.axhline(100 * prevalence, color=GREY, ls=":", lw=1, label="flag at random")
    ax.set(xlabel="recall, % of frauds found", ylabel="precision, % of flags", xlim=(0, 101), ylim=(0, 101))
    ax.set_title(f"How many false alarms does each further fraud cost? ({origin})")
    ax.legend(fontsize=8)


def recall_by_kind(kinds: Mapping[str, Mapping[str, Any]], origin: str, ax: Axes) -> None:
    """Recall of each kind at the threshold with its 95 % interval; hard kinds are hatched.

    Parameters
    ----------
    kinds : as `evaluation.by_kind` gives them.
    """
    names = sorted(kinds, key=lambda name: -kinds[name]["recall"]["value"])
    y = np.arange(len(names))
    value, low, high = (np.array([100 * kinds[k]["recall"][part] for k in names]) for part in ("value", "low", "high"))
    easy = np.array([bool(kinds[k]["easy"]) for k in names])
    ax.barh(y[easy], value[easy], color=SKY, label="easy: breaks an identity of the record")
    ax.barh(y[~easy], value[~easy], color="#f6d48f", hatch="///", edgecolor=ORANGE, label="hard: keeps every identity")
    ax.errorbar(
        value,
        y,
        xerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
        fmt="none",
        ecolor="black",
        elinewidth=1,
    )
    ax.set_yticks(y, [name.replace("_", " ") for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="found at the threshold, %", xlim=(0, 100))
    title_over_legend(ax, f"Which kinds get away? ({origin})", ncols=2)


def false_positive_rate(months: Mapping[str, Interval], budget: float, origin: str, ax: Axes) -> None:
    """Share of honest trips flagged in each split with its interval, against the budget."""
    y = np.arange(len(months))
    value, low, high = (np.array([100 * part[key] for part in months.values()]) for key in ("value", "low", "high"))
    ax.errorbar(value, y, xerr=[value - low, high - value], fmt="o", color=BLUE, capsize=3)
    ax.axvline(100 * budget, color="black", lw=1.2, label=f"budget {100 * budget:g} %")
    ax.set_yticks(y, list(months))
    ax.set(xlabel="honest trips flagged, %", xlim=(0, None), ylim=(len(months) - 0.4, -0.6))
    ax.set_title(f"Is the promised budget kept? ({origin})")
    ax.legend()


def _dots(ax: Axes, y: Array, parts: Sequence[Interval], colour: str, marker: str, label: str) -> None:
    value, low, high = (np.array([100 * part[key] for part in parts]) for key in ("value", "low", "high"))
    error = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
    ax.errorbar(value, y, xerr=error, fmt=marker, color=colour, capsize=2, label=label)


def detectors(groups: Mapping[str, Mapping[str, Interval]], origin: str, ax: Axes) -> None:
    """Average precision of each detector with its 95 % interval, by group.

    Parameters
    ----------
    groups : group -> detector -> average precision, the best group first.
    """
    names = [name for group in groups.values() for name in group]
    start = 0
    for (group, parts), colour, marker in zip(groups.items(), (BLUE, ORANGE, GREY), ("D", "s", "o"), strict=False):
        _dots(ax, np.arange(start, start + len(parts), dtype=np.float64), list(parts.values()), colour, marker, group)
        start += len(parts)
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="average precision, %", xlim=(0, 100))
    title_over_legend(ax, f"What do teaching and surprises each add? ({origin})", ncols=len(groups))


def families_left_out(families: Mapping[str, Mapping[str, Interval]], origin: str, ax: Axes) -> None:
    """Recall of each family of kinds by the model that was taught all, and by one that never saw the family.

    Parameters
    ----------
    families : as `heldout.measure` gives them.
    """
    y = np.arange(len(families), dtype=np.float64)
    _dots(ax, y - 0.1, [f["recall_taught"] for f in families.values()], GREY, "o", "taught all kinds")
    _dots(ax, y + 0.1, [f["recall"] for f in families.values()], BLUE, "D", "taught without this family")
    ax.set_yticks(y, list(families))
    ax.invert_yaxis()
    ax.set(xlabel="found at one false positive in a hundred, %", xlim=(0, 101))
    title_over_legend(ax, f"What would be found that nobody taught? ({origin})", ncols=2)
