"""Accuracy against cost: models of several widths, trained alike, on one figure; run as `python -m bench.sizes`.

Each size is trained from scratch on the same months with the same seed, calibrated on the validation month and judged
on the test month with frauds of its own seed. Cost is what `fraudlib score` pays for each row once the file is read:
features to score, reasons of flagged rows included, on one core.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from bench.machine import describe
from fraudlib import calibration, evaluation, features, parts, paths, plots, scoring, splits, statistics, training
from fraudlib import fraud as frauds
from fraudlib import trial as trials
from fraudlib.errors import FraudError
from fraudlib.manifest import write_atomic
from fraudlib.model import READINGS, ModelConfig
from fraudlib.trips import to_columns

Columns = Mapping[str, NDArray[np.generic]]

WIDTHS: Final = "16,32,48,64,96"
ROUNDS: Final = 5  # of the clock; the fastest counts
PREVALENCE: Final = 0.0125
PLANT_SEED: Final = 2300
log = logging.getLogger("bench.sizes")


def sizes(width: int) -> ModelConfig:
    """Sizes that grow together: bottleneck half as wide as the layers, head in the proportion of the model in use."""
    return ModelConfig(width=width, latent_dim=width // 2, head_width=8 * width // 3)


def fastest(call: Callable[[], object], rows: int) -> float:
    """Microseconds of processor time a row, in the fastest of some rounds: time that others take does not count."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds) / rows * 1e6


def one_size(
    width: int, data: Mapping[str, Columns], usual: statistics.Statistics, config: training.TrainingConfig
) -> dict[str, Any]:
    """Train one size, judge it and time it; JSON-ready.

    Parameters
    ----------
    data : columns of the splits train, valid and test, (n,) each.
    """
    start = time.perf_counter()
    model, _ = training.fit(data["train"], data["valid"], usual, sizes(width), config, progress=False)
    seconds = time.perf_counter() - start
    raw = scoring.raw_scores(model, features.build(data["valid"], usual))
    fitted = calibration.fit(raw.logit, raw.surprise, READINGS)
    threshold = evaluation.choose_threshold(fitted.score(raw.logit, raw.surprise), 0.01)
    scorer = scoring.Scorer(f"width {width}", model, usual, fitted, threshold)
    honest, x = scorer.score(data["test"]).anomaly_score, features.by_feature(data["test"], usual)
    found = {}
    for name, kinds, seed in (("listed", training.TAUGHT, PLANT_SEED), ("unlisted", frauds.UNLISTED, PLANT_SEED + 100)):
        planted = trials.plant(data["test"], 0.05, 2, seed, kinds)
        score = np.append(honest, scorer.score(planted.columns).anomaly_score)
        label = np.repeat([False, True], [len(honest), len(planted.kind)])
        found[name] = evaluation.evaluate(label, score, threshold, rounds=100, prevalence=PREVALENCE)
    n = len(honest)
    return {
        "width": width,
        "weights": sum(p.numel() for p in model.parameters()),
        "average_precision": found["listed"]["average_precision"],
        "recall_at_1_percent": found["listed"]["recall_at_fpr"]["0.01"],
        "recall_at_1_percent_unlisted": found["unlisted"]["recall_at_fpr"]["0.01"],
        "microseconds_a_row": round(fastest(lambda: scorer.score(data["test"]), n), 3),
        "microseconds_a_row_model_alone": round(fastest(lambda: scorer.raw(x), n), 3),
        "training_seconds": round(seconds, 1),
    }


def draw(results: Sequence[Mapping[str, Any]], origin: str, target: Path) -> None:
    """Average precision and recall against cost, one dot a size."""
    plots.use_style(dpi=110)
    fig, ax = plt.subplots()
    cost = np.array([r["microseconds_a_row"] for r in results])
    for (key, label), colour, style in zip(
        (
            ("average_precision", f"average precision at {PREVALENCE:.2%} fraud"),
            ("recall_at_1_percent", "recall at 1 % false positives"),
            ("recall_at_1_percent_unlisted", "the same, kinds on no list"),
        ),
        (plots.BLUE, plots.ORANGE, plots.GREEN),
        plots.LINES,
        strict=False,
    ):
        value, low, high = (np.array([r[key][part] for r in results]) for part in ("value", "low", "high"))
        ax.errorbar(
            cost, value, [value - low, high - value], color=colour, ls=style, marker="o", capsize=2, label=label
        )
    for r, x in zip(results, cost, strict=True):
        ax.annotate(
            f"{r['width']}",
            (x, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            ha="center",
            textcoords="offset points",
            fontsize=8,
        )
    ax.set(
        xscale="log", xlabel="microseconds a row on one core, features to reasons (width of the layers above the axis)"
    )
    ax.set_xticks(cost, [f"{x:.1f}" for x in cost])
    ax.minorticks_off()
    ax.set_title(f"What does a larger model buy? ({origin})", pad=22)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    fig.savefig(target, metadata={"Software": None})
    plt.close(fig)


@click.command()
@click.option("--data-dir", default="data/raw", show_default=True, help="Folder of the months.")
@click.option("--service", default="green", show_default=True)
@click.option("--train", "train_months", default="2023-01:2023-02", show_default=True)
@click.option("--valid", "valid_month", default="2023-03", show_default=True)
@click.option("--test", "test_month", default="2023-04", show_default=True)
@click.option("--widths", default=WIDTHS, show_default=True, help="Widths of the layers, units.")
@click.option("--epochs", default=8, show_default=True, help="Passes of the autoencoder.")
@click.option("--head-rounds", default=2, show_default=True, help="Plantings that the head is taught with.")
@click.option("--head-epochs", default=6, show_default=True, help="Passes of the head over all rounds.")
@click.option("--out", default="docs", show_default=True, help="Folder of model-sizes.json and model-sizes.png.")
def main(
    data_dir: str,
    service: str,
    train_months: str,
    valid_month: str,
    test_month: str,
    widths: str,
    epochs: int,
    head_rounds: int,
    head_epochs: int,
    out: str,
) -> None:
    """Train every size, and write docs/model-sizes.json and docs/model-sizes.png."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%T")
    periods = {"train": train_months, "valid": valid_month, "test": test_month}
    splits.check_order(periods)
    machine, folder = describe(), paths.resolve(data_dir)
    data = {
        split: to_columns(splits.load(folder, service, period, 1_000_000, 7)[0]) for split, period in periods.items()
    }
    parts.use_one_thread()
    usual = statistics.fit(data["train"])
    config = training.TrainingConfig(epochs=epochs, head_rounds=head_rounds, head_epochs=head_epochs)
    results = []
    for width in map(int, widths.split(",")):
        results.append(one_size(width, data, usual, config))
        log.info("width %d: %s", width, {k: v for k, v in results[-1].items() if k != "width"})
    rows = {split: features.row_count(columns) for split, columns in data.items()}
    settings = {"service": service, "periods": periods, "rows": rows, "prevalence": PREVALENCE}
    settings |= {"epochs": epochs, "head_rounds": head_rounds, "head_epochs": head_epochs, "seed": config.seed}
    about = splits.describe(folder, service, periods)
    content = {"machine": machine, "settings": settings, "files": about["files"], "sizes": results}
    target = paths.resolve(out)
    write_atomic(target / "model-sizes.json", json.dumps(parts.jsonable(content), indent=1).encode() + b"\n")
    draw(results, f"{parts.origin(about)}, {test_month}", target / "model-sizes.png")


if __name__ == "__main__":
    try:
        main()
    except FraudError as err:
        raise SystemExit(str(err)) from err
