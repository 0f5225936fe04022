"""What staleness costs: walk forward month by month, with and without retraining: `python -m fraudlib.backtest`.

Each month is tested by a model that was trained on the months known by then, and by the first model of all, which is
never trained again. Thresholds are chosen as notebook 03 chooses them, frauds are planted as notebook 04 plants them.
"""

import calendar
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from fraudlib import calibration, evaluation, features, operating, parts, plots, scoring, splits, statistics, training
from fraudlib import trial as trials
from fraudlib import trips as months
from fraudlib.errors import DataError, FraudError, ParameterError
from fraudlib.model import READINGS, ModelConfig
from fraudlib.schema import SERVICES

Columns = evaluation.Columns
ARMS: Final = ("retrained", "never retrained")
BUDGET, CONFIDENCE, PREVALENCE = 0.01, 0.95, 0.0125  # as notebook 03 has them
_MONTH: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


@dataclass(frozen=True)
class Step:
    """Months of one model, earliest first, and the month that it is tested on."""

    train: tuple[str, ...]
    valid: str
    test: str


@dataclass(frozen=True)
class Config:
    """How to train and test; rows are the most trips taken of a split, frauds are planted into a share of a month."""

    train_months: int = 2
    wait_months: int = 1
    max_rows: int = 30_000
    epochs: int = 10
    head_rounds: int = 3
    head_epochs: int = 5
    rounds: int = 2
    seed: int = 7


def plan(there: Sequence[str], train_months: int, wait_months: int) -> list[Step]:
    """Steps through the months that exist.

    Parameters
    ----------
    there : months "YYYY-MM", ascending; gaps are allowed.
    train_months : months that a model is trained on; the next one that exists validates.
    wait_months : calendar months between the latest one known and the tested one, as data come late.

    Raises
    ------
    DataError
        If no month has enough months before it.

    Examples
    --------
    >>> plan(["2023-01", "2023-02", "2023-03", "2023-04"], 1, 1)
    [Step(train=('2023-01',), valid='2023-02', test='2023-04')]
    """
    steps = []
    for test in there:
        last = np.datetime64(test, "M") - (1 + wait_months)
        known = [month for month in there if np.datetime64(month, "M") <= last]
        if len(known) > train_months:
            steps.append(Step(tuple(known[-train_months - 1 : -1]), known[-1], test))
    if not steps:
        raise DataError(
            f"expected {train_months} months to train on, one to validate, {wait_months} to wait and one to test, "
            f"found {', '.join(there) or 'no months'}; widen --from and --to, or lower --train-months and --wait-months"
        )
    return steps


def between(there: Sequence[str], first: str, last: str) -> list[str]:
    """Months from first to last, both included; ParameterError where either is none."""
    for text in (first, last):
        if not _MONTH.fullmatch(text):
            raise ParameterError(f"expected a month like 2023-01, found {text!r}; correct --from and --to")
    return [month for month in there if first <= month <= last]


class Walk:
    """Models and months of a walk, each made once.

    Parameters
    ----------
    data_dir, service : where the months are, and whose.
    """

    def __init__(self, data_dir: Path, service: str, config: Config) -> None:
        self._data_dir, self._service, self._config = data_dir, service, config
        self._made: tuple[Step, scoring.Scorer] | None = None

    def load(self, chosen: Sequence[str]) -> tuple[Columns, int]:
        """Trips of the months, at most `max_rows` drawn evenly, and how many there were."""
        most = self._config.max_rows // len(chosen)
        loaded = [splits.load(self._data_dir, self._service, m, most, self._config.seed) for m in chosen]
        return features.concat([months.to_columns(table) for table, _ in loaded]), sum(rows for _, rows in loaded)

    def scorer(self, step: Step) -> scoring.Scorer:
        """Model of a step with its threshold; the last one is kept, since a wait makes steps share theirs."""
        if self._made is None or (self._made[0].train, self._made[0].valid) != (step.train, step.valid):
            self._made = step, self._train(step)
        return self._made[1]

    def _train(self, step: Step) -> scoring.Scorer:
        c = self._config
        train, valid = self.load(step.train)[0], self.load([step.valid])[0]
        usual = statistics.fit(train)
        config = training.TrainingConfig(c.epochs, c.head_rounds, c.head_epochs, seed=c.seed)
        model, _ = training.fit(train, valid, usual, ModelConfig(), config, progress=False)
        raw = {name: scoring.raw_scores(model, features.build(x, usual)) for name, x in _named(valid, train)}
        fitted = calibration.fit(raw["valid"].logit, raw["valid"].surprise, READINGS)
        score = {name: fitted.score(r.logit, r.surprise) for name, r in raw.items()}
        cuts = [
            (score[name], operating.blocks(x["pickup_datetime"].astype("datetime64[us]")))
            for name, x in _named(valid, train)
        ]
        margin = operating.margin(cuts, BUDGET, CONFIDENCE)
        threshold = evaluation.choose_threshold(score["valid"], BUDGET / (1 + margin))
        return scoring.Scorer("+".join(step.train), model, usual, fitted, threshold)

    def measure(self, scorer: scoring.Scorer, month: str) -> dict[str, float]:
        """What a model makes of a month: figures by name, with the bounds of their 95 % intervals."""
        c = self._config
        test, rows = self.load([month])
        planted = trials.plant(test, 0.05, c.rounds, c.seed)
        honest, fraud = (scorer.score(x).anomaly_score for x in (test, planted.columns))
        label = np.repeat([False, True], [len(honest), len(fraud)])
        both = np.append(honest, fraud)
        found = evaluation.evaluate(label, both, scorer.threshold, 100, c.seed, prevalence=PREVALENCE)
        days = calendar.monthrange(*map(int, month.split("-")))[1]
        at = np.array([scorer.threshold])
        load = operating.sweep(honest, fraud, at, PREVALENCE, rows / days, 0.0, 0.0)
        return {
            "trips": rows,
            **_flat("average_precision", found["average_precision"]),
            **_flat("false_positive_rate", found["false_positive_rate"]),
            "recall": found["recall"]["value"],
            "alerts_per_day": float(load.alerts_per_day[0]),
            "threshold": scorer.threshold,
        }


def _named(valid: Columns, train: Columns) -> Iterator[tuple[str, Columns]]:
    yield from (("valid", valid), ("train", train))


def _flat(name: str, interval: dict[str, float]) -> dict[str, float]:
    return {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def walk(
    data_dir: Path, service: str, there: Sequence[str], config: Config, say: Callable[[str], None] = lambda line: None
) -> pa.Table:
    """Table of the walk: a row for each tested month and arm.

    Parameters
    ----------
    there : months to walk through, ascending. say : gets a line of progress for each month.

    Returns
    -------
    Table with test, arm, trained_on, threshold_from, trips (of the month), average_precision and false_positive_rate
    (shares, with _low and _high), recall at the threshold, alerts_per_day of the whole month's traffic, threshold.
    """
    steps = plan(there, config.train_months, config.wait_months)
    pace = Walk(data_dir, service, config)
    first = pace.scorer(steps[0])
    rows: list[dict[str, Any]] = []
    for i, step in enumerate(steps):
        start = time.process_time()
        latest = pace.scorer(step)
        for arm, scorer, own in zip(ARMS, (latest, first), (step, steps[0]), strict=True):
            names = {"test": step.test, "arm": arm, "trained_on": "+".join(own.train), "threshold_from": own.valid}
            same = scorer is latest and arm == ARMS[1]
            figures = {k: rows[-1][k] for k in FIGURES} if same else pace.measure(scorer, step.test)
            rows.append(names | figures)
        say(f"{i + 1} of {len(steps)}: {step.test} tested, {time.process_time() - start:.0f} s of CPU time")
    return pa.Table.from_pylist(rows)


FIGURES: Final = (
    "trips",
    *(name + end for name in ("average_precision", "false_positive_rate") for end in ("", "_low", "_high")),
    "recall",
    "alerts_per_day",
    "threshold",
)
_COLUMNS: Final = {
    "tested": "{test}",
    "model": "{arm}",
    "trained on": "{trained_on}",
    "threshold from": "{threshold_from}",
    "average precision": "{average_precision:.3f} [{average_precision_low:.3f}, {average_precision_high:.3f}]",
    "honest trips flagged": "{false_positive_rate:.2%} [{false_positive_rate_low:.2%}, {false_positive_rate_high:.2%}]",
    "recall": "{recall:.3f}",
    "alerts a day": "{alerts_per_day:.1f}",
}


def as_text(table: pa.Table) -> str:
    """The table in Markdown, aligned."""
    cells = [list(_COLUMNS), *([form.format(**row) for form in _COLUMNS.values()] for row in table.to_pylist())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in cells)


def draw(table: pa.Table, origin: str) -> Figure:
    """Average precision, honest trips flagged and alerts a day, month by month, for both arms."""
    plots.use_style(110)
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    panels = {"average_precision": "average precision", "false_positive_rate": "honest trips\nflagged"}
    axes = figure.subplots(3, 1, sharex=True)
    for ax, (name, words) in zip(axes, (panels | {"alerts_per_day": "alerts a day"}).items(), strict=True):
        for arm, colour, marker in zip(ARMS, (plots.BLUE, plots.ORANGE), ("o", "s"), strict=True):
            rows = [row for row in table.to_pylist() if row["arm"] == arm]
            value = np.array([row[name] for row in rows])
            bounds = [[row.get(f"{name}_{end}", row[name]) for row in rows] for end in ("low", "high")]
            spread = np.abs(np.array(bounds) - value)
            month = [row["test"] for row in rows]
            ax.errorbar(month, value, spread, color=colour, marker=marker, capsize=3, label=arm)
        ax.set(ylim=(0, None), ylabel=words)
    axes[1].axhline(BUDGET, color=plots.GREY, linestyle=":")
    axes[1].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    plots.title_over_legend(axes[0], f"What does staleness cost? ({origin})", 2)
    return figure


def write(table: pa.Table, origin: str, folder: Path) -> None:
    """Write backtest.csv, backtest.parquet and backtest.png into a folder, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "backtest.parquet")
    pa.csv.write_csv(table, folder / "backtest.csv")
    draw(table, origin).savefig(folder / "backtest.png")


DEFAULTS: Final = asdict(Config())


@click.command()
@click.option("--from", "first", required=True, help="First month, YYYY-MM.")
@click.option("--to", "last", required=True, help="Last month, YYYY-MM.")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="Folder of the months.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results.")
@click.option("--service", type=click.Choice(SERVICES), default="green", show_default=True)
@click.option("--train-months", type=click.IntRange(1), default=DEFAULTS["train_months"], show_default=True)
@click.option("--wait-months", type=click.IntRange(0), default=DEFAULTS["wait_months"], show_default=True)
@click.option("--max-rows", type=click.IntRange(1000), default=DEFAULTS["max_rows"], show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=DEFAULTS["epochs"], show_default=True)
@click.option("--seed", type=int, default=DEFAULTS["seed"], show_default=True)
def main(first: str, last: str, data_dir: Path, out: Path, service: str, **chosen: int) -> None:
    """Walk forward through the months of a folder; the table goes to stdout and, with a figure, into --out."""
    try:
        there = between(list(months.months(data_dir, service)), first, last)
        if not there:
            raise DataError(
                f"{data_dir}: expected {service} months from {first} to {last}, found none; put some there or correct "
                "--data-dir, --from and --to"
            )
        parts.use_one_thread()
        table = walk(data_dir, service, there, Config(**chosen), lambda line: click.echo(line, err=True))
        origin = parts.origin(splits.describe(data_dir, service, {month: month for month in there}))
        write(table, origin, out)
    except OSError as err:
        click.echo(f"{err.filename or out}: {err.strerror or err}", err=True)
        sys.exit(1)
    except FraudError as err:
        click.echo(str(err), err=True)
        sys.exit(2 if isinstance(err, ParameterError) else 1)
    click.echo(as_text(table))


if __name__ == "__main__":
    main()
