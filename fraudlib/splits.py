"""Splits by time: training before validation before test, read from months and thinned to what memory holds."""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from fraudlib import trips
from fraudlib.errors import DataError

SPLITS: Final = ("train", "valid", "test")
_MONTHS: Final = re.compile(r"(\d{4}-\d{2}):(\d{4}-\d{2})")


def check_order(periods: Mapping[str, str]) -> None:
    """Refuse periods that overlap or run backwards in time.

    Parameters
    ----------
    periods : split -> period, earliest first; a period is one that `trips.load_period` takes.

    Raises
    ------
    DataError
        If a period does not end before the next begins; names both.

    Examples
    --------
    >>> check_order({"train": "2023-01:2023-03", "valid": "2023-04", "test": "2023-06-01:2023-06-10"})
    """
    for (before, first), (after, second) in pairwise(periods.items()):
        end, start = first.rsplit(":", 1)[-1], second.split(":", 1)[0]
        # Compared to the month where one of them names no day.
        if end[: len(start)] >= start[: len(end)]:
            raise DataError(
                f"expected the {before} period to end before the {after} period begins, found {before} {first} and "
                f"{after} {second}; choose periods that follow each other in time"
            )


def months_of(period: str) -> list[str]:
    """Calendar months that a period touches.

    Examples
    --------
    >>> months_of("2022-12:2023-02"), months_of("2023-05-03:2023-05-09")
    (['2022-12', '2023-01', '2023-02'], ['2023-05'])
    """
    start, end = period.split(":", 1)[0][:7], period.rsplit(":", 1)[-1][:7]
    return [str(m) for m in np.arange(np.datetime64(start, "M"), np.datetime64(end, "M") + 1)]


def load(data_dir: Path, service: str, period: str, max_rows: int, seed: int) -> tuple[pa.Table, int]:
    """Trips of a period, at most `max_rows` of them drawn evenly from its months, and how many there were.

    Months are read one after another, so that memory holds one of them and the sample.

    Raises
    ------
    DataError
        If a month is missing or the period holds no trips.
    """
    pieces = months_of(period) if _MONTHS.fullmatch(period) else [period]
    rng = np.random.default_rng(seed)
    kept, rows = [], 0
    for piece in pieces:
        table = trips.load_period(data_dir, service, piece)
        rows += len(table)
        kept.append(_thin(table, max_rows // len(pieces), rng))
    table = pa.concat_tables(part.replace_schema_metadata(None) for part in kept)
    simulated = any((part.schema.metadata or {}).get(trips.SIMULATED_KEY) for part in kept)
    return (trips.mark_simulated(table) if simulated else table), rows


def _thin(table: pa.Table, most: int, rng: np.random.Generator) -> pa.Table:
    if len(table) <= most:
        return table
    return table.take(pa.array(np.sort(rng.choice(len(table), most, replace=False))))


def describe(data_dir: Path, service: str, periods: Mapping[str, str]) -> dict[str, Any]:
    """Files behind the periods with sizes, hashes and rows, and whether any of them is simulated."""
    there = trips.months(data_dir, service)
    wanted = sorted({month for period in periods.values() for month in months_of(period)})
    return trips.provenance([there[month] for month in wanted])
