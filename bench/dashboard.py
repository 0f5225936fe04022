"""What the dashboard shows of a running stack: `python -m bench.dashboard` draws docs/dashboard.png.

A real Prometheus scrapes broker, API and worker under a steady stream of simulated trips with planted fraud. The panels
are those of docker/grafana/dashboards/fraud-detection.json: their titles, their queries and their units, asked of that
Prometheus and drawn by matplotlib. It is no screenshot of Grafana.
"""

import argparse
import contextlib
import http.client
import json
import shutil
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.axes import Axes
from tqdm import tqdm

from bench.site import Site, until
from fraudlib import paths, plots
from fraudlib.demo.stack import answers, free_port
from fraudlib.demo.tally import Tally
from fraudlib.demo.traffic import Traffic, sample_waves
from fraudlib.errors import ServiceError

DASHBOARD: Final = Path("docker/grafana/dashboards/fraud-detection.json")
CONFIGURATION: Final = Path("docker/prometheus/prometheus.yml")
RATE_INTERVAL: Final = "20s"  # Grafana's $__rate_interval: four times the scrape interval
STEP_SECONDS: Final = 5
SHOWN: Final = (
    "Rate",
    "Alerts by reason",
    "Scores and the threshold",
    "Scores given",
    "False-positive budget used",
    "Drift by feature",
    "POST to score",
    "Where the time goes",
    "Lag by partition",
)
MOST_LINES: Final = 7
COLOURS: Final = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PINK, plots.SKY, plots.RED, plots.GREY)

Answer = list[dict[str, Any]]  # of Prometheus: series with `metric` and `values`, or `value`


@dataclass(frozen=True)
class Panel:
    """One panel of a dashboard's file.

    Attributes
    ----------
    kind : Grafana's type. unit : as Grafana names it. targets : (query, legend), the interval filled in.
    """

    title: str
    kind: str
    unit: str
    is_stacked: bool
    limit: float | None
    targets: tuple[tuple[str, str], ...]


def panels(file: Path) -> list[Panel]:
    """Panels of a dashboard that ask for something, in its own order."""
    found = []
    for panel in json.loads(file.read_text())["panels"]:
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        custom = defaults.get("custom", {})
        steps = [step["value"] for step in defaults.get("thresholds", {}).get("steps", []) if step["value"] is not None]
        has_limit = custom.get("thresholdsStyle", {}).get("mode", "off") != "off"
        targets = [
            (target["expr"].replace("$__rate_interval", RATE_INTERVAL), target.get("legendFormat", ""))
            for target in panel.get("targets", [])
        ]
        if targets:
            found.append(
                Panel(
                    panel["title"],
                    panel["type"],
                    defaults.get("unit", "none"),
                    custom.get("stacking", {}).get("mode") == "normal",
                    steps[-1] if has_limit and steps else None,
                    tuple(targets),
                )
            )
    return found


def configuration(targets: Mapping[str, int]) -> dict[str, Any]:
    """The stack's own Prometheus configuration, with ports of this machine (job -> port) in place of its addresses."""
    given = yaml.safe_load(paths.resolve(CONFIGURATION).read_text())
    given["rule_files"] = [str(paths.resolve(CONFIGURATION.parent / pattern)) for pattern in given["rule_files"]]
    given["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()
    ]
    return dict(given)


def ask(port: int, path: str, **parameters: Any) -> Answer:
    """Series that the Prometheus on a port of this machine answers a query with."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        content = json.loads(connection.getresponse().read())
    return list(content["data"]["result"])


def watch(minutes: float, rate: float, fraud_share: float, seed: int) -> dict[str, list[Answer]]:
    """Run the stack and answer every panel's queries from a Prometheus beside it: "title/type" -> one answer a query.

    Raises
    ------
    ServiceError
        If Prometheus is not installed or a service does not start.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise ServiceError("expected the program prometheus, found none on the PATH; install it to draw the dashboard")
    with Site() as site:
        site.start_broker()
        site.start_api()
        worker = site.start_worker()
        port = free_port()
        folder = site.services[0].log.parent
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration({"api": site.settings.api_port, "worker": worker.metrics_port})))
        site.start_program(
            "prometheus",
            [
                binary,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
        )
        until(lambda: answers("127.0.0.1", port, "/-/ready"), why="a ready Prometheus")
        tally = Tally("dashboard-")
        waves = sample_waves(paths.resolve("data/sample"), fraud_share, seed, tally.prefix)
        traffic = Traffic(waves, f"http://127.0.0.1:{site.settings.api_port}", rate, tally)
        start = time.time()
        traffic.start()
        for _ in tqdm(range(round(60 * minutes)), unit="s", disable=None, leave=False):
            time.sleep(1)
            if traffic.error:
                raise traffic.error
        end = time.time()
        found = {}
        for panel in panels(paths.resolve(DASHBOARD)):
            over = {"start": start, "end": end, "step": STEP_SECONDS}
            is_one = panel.kind in ("stat", "bargauge")
            path, more = ("query", {"time": end}) if is_one else ("query_range", over)
            found[f"{panel.title}/{panel.kind}"] = [ask(port, path, query=query, **more) for query, _ in panel.targets]
        traffic.stopping.set()
        traffic.join()
    return found


def _name(legend: str, metric: Mapping[str, str]) -> str:
    for label, value in metric.items():
        legend = legend.replace("{{" + label + "}}", value)
    return legend


def _series(panel: Panel, found: Sequence[Answer]) -> dict[str, tuple[Any, Any]]:
    """Legend -> (time, value) of each line, the largest first where a panel has more than can be told apart."""
    lines = {}
    for (_, legend), answer in zip(panel.targets, found, strict=True):
        for series in answer:
            at, values = np.array(series["values"], dtype=float).T
            if np.isfinite(values).any():
                lines[_name(legend, series["metric"])] = (at.astype("datetime64[s]"), values)
    if len(lines) <= MOST_LINES:
        return lines
    largest = sorted(lines, key=lambda name: -float(np.nansum(lines[name][1])))[:MOST_LINES]
    return {name: lines[name] for name in largest}


SCALES: Final = {"s": (1000.0, "ms"), "percentunit": (100.0, "%"), "short": (1.0, ""), "none": (1.0, "")}


def _scale(unit: str) -> tuple[float, str]:
    return SCALES.get(unit, (1.0, unit.removeprefix("suffix: ")))


def _lines(panel: Panel, found: Sequence[Answer], ax: Axes) -> None:
    factor, unit = _scale(panel.unit)
    lines = _series(panel, found)
    if panel.is_stacked and lines:
        times = np.unique(np.concatenate([at for at, _ in lines.values()]))
        table = np.zeros((len(lines), len(times)))
        for row, (at, values) in zip(table, lines.values(), strict=True):
            row[np.searchsorted(times, at)] = np.nan_to_num(factor * values)
        ax.stackplot(times, table, labels=list(lines), colors=COLOURS, alpha=0.85)
    else:
        for (name, (at, values)), colour in zip(lines.items(), COLOURS, strict=False):
            is_bound = name == "threshold" or name.startswith("promised")
            style = {"color": "black" if is_bound else colour, "ls": "--" if is_bound else "-", "lw": 1.3}
            ax.plot(at, factor * values, label=name, **style)
    if panel.limit is not None:
        ax.axhline(factor * panel.limit, color="black", lw=1, ls=":", label=f"limit {factor * panel.limit:g} {unit}")
    ax.set_ylim(bottom=0)
    if unit:
        ax.set_ylabel(unit)
    if lines:
        ax.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.12), borderaxespad=0, handlelength=1.2)


def _heatmap(panel: Panel, found: Sequence[Answer], ax: Axes) -> None:
    """Rate of each bin: differences of the cumulative buckets."""
    (answer,) = found
    buckets = sorted((float(series["metric"]["le"]), np.array(series["values"], dtype=float)) for series in answer)
    edges = np.array([le for le, _ in buckets if np.isfinite(le)])
    rates = np.diff([values[:, 1] for _, values in buckets], axis=0, prepend=0.0)[: len(edges)]
    at = buckets[0][1][:, 0].astype("datetime64[s]")
    lower = np.append(0.0, edges)
    shown = np.ma.masked_less_equal(rates, 1e-9)
    norm = mpl.colors.LogNorm(0.05, max(float(rates.max()), 0.1))
    ends = np.append(at, at[-1] + np.timedelta64(STEP_SECONDS, "s"))
    image = ax.pcolormesh(mdates.date2num(ends), lower, shown, cmap="cividis", norm=norm)
    ax.grid(visible=False)
    ax.set_ylabel("anomaly score")
    ax.figure.colorbar(image, ax=ax, label="transactions /s", pad=0.02)


def _bars(panel: Panel, found: Sequence[Answer], ax: Axes) -> None:
    (answer,), ((_, legend),) = found, panel.targets
    values = {_name(legend, series["metric"]): float(series["value"][1]) for series in answer}
    names = sorted(values, key=lambda name: -values[name])
    ax.barh(names, [values[name] for name in names], color=plots.BLUE)
    ax.invert_yaxis()
    for bound, style in ((0.1, "--"), (0.25, ":")):
        ax.axvline(bound, color="black", lw=1, ls=style)
    ax.set_xlim(0, max(0.3, 1.1 * max(values.values(), default=0.0)))
    ax.tick_params(axis="y", labelsize=7)
    ax.set_xlabel("stability index; dashed: no longer the same, dotted: much has changed", fontsize=7)


def _stat(panel: Panel, found: Sequence[Answer]) -> str:
    """The number of a tile as Grafana would write it: for the bundle in use its name."""
    (answer,), ((_, legend),) = found, panel.targets
    if not answer:
        return "no data"
    if legend:
        return _name(legend, answer[0]["metric"]).replace("-", "-\n", 1)
    factor, unit = _scale(panel.unit)
    value = factor * float(answer[0]["value"][1])
    return f"{value:,.1f} {unit}" if value % 1 and value < 100 else f"{value:,.0f} {unit}"


def draw(found: Mapping[str, Sequence[Answer]], caption: str, path: Path) -> None:
    """Draw the tiles and nine of the panels from what Prometheus answered.

    Parameters
    ----------
    found : as `watch` gives them. caption : what was run, below the figure. path : of the PNG.
    """
    known = {f"{panel.title}/{panel.kind}": panel for panel in panels(paths.resolve(DASHBOARD))}
    tiles = [key for key, panel in known.items() if panel.kind == "stat" and panel.title != "Device"]
    shown = [next(key for key, p in known.items() if p.title == title and p.kind != "stat") for title in SHOWN]
    with mpl.rc_context():
        plots.use_style()
        figure = plt.figure(figsize=(13, 10.4))
        top, body = figure.subfigures(2, 1, height_ratios=(1, 11))
        _tiles(top, {known[key].title: _stat(known[key], found[key]) for key in tiles})
        for key, ax in zip(shown, body.subplots(3, 3).flat, strict=True):
            panel = known[key]
            kinds = {"heatmap": _heatmap, "bargauge": _bars}
            kinds.get(panel.kind, _lines)(panel, found[key], ax)
            ax.set_title(panel.title)
            if panel.kind != "bargauge":
                ax.xaxis.set_major_locator(mdates.MinuteLocator(interval=max(1, round(_minutes(ax) / 4))))
                ax.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
                ax.tick_params(labelsize=8)
        figure.supxlabel(caption, fontsize=8)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        plt.close(figure)


def _minutes(ax: Axes) -> float:
    low, high = ax.get_xlim()
    return 24 * 60 * (high - low)


def _tiles(figure: Any, texts: Mapping[str, str]) -> None:
    for ax, (title, text) in zip(figure.subplots(1, len(texts)), texts.items(), strict=True):
        ax.set_axis_off()
        ax.text(0.5, 0.85, title, ha="center", fontsize=8, color=plots.GREY)
        ax.text(0.5, 0.1, text, ha="center", fontsize=14 if len(text) < 12 else 8, color=plots.BLUE)


def main(arguments: Sequence[str]) -> int:
    """Run, draw, and print where the figure lies."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of steady load (default 4)")
    parser.add_argument("--rate", type=float, default=200.0, help="trips a second (default 200)")
    parser.add_argument("--fraud", type=float, default=0.0125, help="share of planted fraud (default 0.0125)")
    parser.add_argument("--seed", type=int, default=7, help="of the planting (default 7)")
    parser.add_argument("--out", type=Path, default=paths.root() / "docs/dashboard.png")
    given = parser.parse_args(arguments)
    try:
        found = watch(given.minutes, given.rate, given.fraud, given.seed)
    except ServiceError as err:
        print(err, file=sys.stderr)
        return 1
    caption = (
        f"The dashboard's own queries, asked of Prometheus and drawn by matplotlib (no screenshot of Grafana): "
        f"{given.minutes:g} minutes of {given.rate:g} simulated trips a second, {given.fraud:.2%} planted fraud"
    )
    draw(found, caption, given.out)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
