"""One figure of a file of results: latency by offered rate, and throughput beside what it is measured against."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

BARS: Final = {
    "ceiling": "consume and republish\n(ceiling)",
    "trivial_scorer": "worker,\ntrivial scorer",
    "worker": "worker",
    "one_process": "worker,\none process",
    "two_workers": "two workers,\none process each",
    "naive": "one record\nat a time",
}
COLOURS: Final = {"p50_ms": "#1b6ca8", "p95_ms": "#e0a030", "p99_ms": "#b03a2e"}


def _throughput(axes: Axes, found: dict[str, Any]) -> None:
    rates = [found[name]["per_second"] for name in BARS]
    bars = axes.barh(list(BARS.values()), rates, color="#1b6ca8")
    axes.bar_label(bars, labels=[f"{rate:,}" for rate in rates], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(rates))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("transactions a second")
    axes.set_title("Throughput, every score published", fontsize=10)


def _latency(axes: Axes, found: dict[str, Any]) -> None:
    steps = found["steps"]
    labels = [f"{step['rate']:,.0f}" for step in steps]
    for kind, style in (("score", "-"), ("alert", "--")):
        for name, colour in COLOURS.items():
            values = [step[kind][name] for step in steps]
            axes.plot(labels, values, style, color=colour, marker="o", label=f"{kind} {name[:3]}", markersize=4)
    axes.axhline(25, color="grey", linewidth=0.7, linestyle=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("transactions a second offered, open loop")
    axes.set_ylabel("ms from the moment due to send")
    axes.set_title("POST to score and to alert", fontsize=10)
    axes.legend(fontsize=7, ncols=2, handlelength=4)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the parts that the results have; the machine stands below.

    Parameters
    ----------
    results : as `python -m bench` writes them.
    path : of the PNG.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, part, draw_part in ((left, "throughput", _throughput), (right, "latency", _latency)):
        if part in results:
            draw_part(axes, results[part])
        else:
            axes.set_axis_off()
    machine = max(results["machines"].values(), key=lambda m: m["measured_at"])
    text = f"{machine['cores']} cores of {machine['processor']}, shared by sender, API, broker, worker and reader"
    figure.supxlabel(f"{text}; {machine['measured_at'][:10]}\n{results['data']}", fontsize=7)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def soak(looks: Any, events: list[tuple[float, str]], warm: float, path: Path) -> None:
    """Draw what the lasting processes used over a soak.

    Parameters
    ----------
    looks : a `bench.soak.Looks`. events : (s, "restart" or "reload"). warm : end of the warm-up, s.
    """
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5.6), sharex=True, layout="constrained")
    minutes = [second / 60 for second in looks.seconds]
    for (name, values), colour in zip(looks.memory_mib.items(), ("#8a8f98", "#1b6ca8", "#b03a2e"), strict=True):
        top.plot(minutes, values, color=colour, label=name)
        bottom.plot(minutes, looks.descriptors[name], color=colour, label=f"{name}, descriptors")
        if name in looks.tasks:
            bottom.plot(minutes, looks.tasks[name], ":", color=colour, label=f"{name}, tasks")
    for at, what in events:
        top.axvline(at / 60, color="#e0a030" if what == "restart" else "#d0d4d8", linewidth=0.7, zorder=0)
    top.axvspan(0, warm / 60, color="#f2f3f5", zorder=-1)
    top.set_ylim(bottom=0)
    top.set_ylabel("resident memory, MiB")
    top.set_title(
        "Does memory stay level after the warm-up (shaded)? Lines: another bundle (grey), a worker restarted (amber)",
        fontsize=9,
    )
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("count")
    bottom.set_xlabel("minutes of steady load")
    for axes in (top, bottom):
        axes.legend(fontsize=7, ncols=3)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
