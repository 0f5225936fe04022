"""Which months to train on now: the newest of a folder, after fetching newer ones: `python -m fraudlib.rolling DIR`."""

import json
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from fraudlib import trips
from fraudlib.errors import DataError, FraudError
from fraudlib.schema import SERVICES
from fraudlib.settings import Settings

MOST_FETCHED: Final = 12  # months in one go; a service that was away for longer catches up over several runs
_UNPUBLISHED: Final = (403, 404)  # what the TLC's address says of a month that it does not have yet


def periods(there: Sequence[str], train_months: int) -> dict[str, str]:
    """Training, validation and test periods: the newest month tests, the one before validates, those before train.

    Parameters
    ----------
    there : months "YYYY-MM", ascending. train_months : how many to train on; they follow each other without a gap.

    Raises
    ------
    DataError
        If there are too few months, or one is missing among those to train on.

    Examples
    --------
    >>> periods(["2023-01", "2023-02", "2023-03", "2023-04", "2023-06"], 3)
    {'train_months': '2023-01:2023-03', 'valid_month': '2023-04', 'test_month': '2023-06'}
    """
    chosen = list(there)[-train_months - 2 : -2]
    if len(chosen) < train_months or train_months < 1:
        raise DataError(
            f"expected {train_months} months to train on, one to validate and one to test, found "
            f"{', '.join(there) or 'none'}; fetch more months or train on fewer"
        )
    first, last = np.datetime64(chosen[0], "M"), np.datetime64(chosen[-1], "M")
    missing = sorted({str(m) for m in np.arange(first, last + 1)} - set(chosen))
    if missing:
        raise DataError(f"expected every month from {first} to {last} to train on, found no {missing[0]}; fetch it")
    train = chosen[0] if first == last else f"{chosen[0]}:{chosen[-1]}"
    return {"train_months": train, "valid_month": there[-2], "test_month": there[-1]}


def fetch(data_dir: Path, service: str, wanted: Sequence[str], base_url: str) -> list[dict[str, str]]:
    """Download months in order until one cannot be had; what became of each.

    Returns
    -------
    list of {"month", "outcome", "problem"}; the outcome is "fetched", "unpublished" or "failed".
    """
    done: list[dict[str, str]] = []
    for month in wanted:
        try:
            trips.download(data_dir, service, month, progress=False, base_url=base_url)
        except (FraudError, OSError) as err:
            cause = err.__cause__
            late = isinstance(cause, urllib.error.HTTPError) and cause.code in _UNPUBLISHED
            return [*done, {"month": month, "outcome": "unpublished" if late else "failed", "problem": str(err)}]
        done.append({"month": month, "outcome": "fetched", "problem": ""})
    return done


def newer(there: Sequence[str], today: np.datetime64, train_months: int) -> list[str]:
    """Months to ask for: those after the newest one that are over, or into an empty folder what a training needs.

    The TLC publishes a month about two months after its end, so that an empty folder begins that much earlier.
    """
    this = today.astype("datetime64[M]")
    first = np.datetime64(there[-1], "M") + 1 if there else this - (train_months + 5)
    return [str(month) for month in np.arange(first, this)][:MOST_FETCHED]


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--service", type=click.Choice(SERVICES), default="green", show_default=True)
@click.option(
    "--train", type=click.IntRange(0), default=3, show_default=True, help="Months to train on; 0: only fetch."
)
@click.option("--fetch", "is_fetching", is_flag=True, help="Fetch newer months first (FRAUDLIB_TRIPS_URL).")
def main(data_dir: Path, service: str, train: int, is_fetching: bool) -> None:
    """Say in one JSON object what was fetched and which periods are due."""
    fetched: list[dict[str, str]] = []
    if is_fetching:
        wanted = newer(list(trips.months(data_dir, service)), np.datetime64("today"), train)
        fetched = fetch(data_dir, service, wanted, Settings().trips_url or trips.BASE_URL)
    answer: dict[str, Any] = {"fetches": fetched, "periods": {}, "problem": ""}
    try:
        answer["periods"] = periods(list(trips.months(data_dir, service)), train) if train else {}
    except FraudError as err:
        answer["problem"] = f"{data_dir}: {err}"
    click.echo(json.dumps(answer))
    sys.exit(1 if answer["problem"] else 0)


if __name__ == "__main__":
    main()
