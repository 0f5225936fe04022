"""Splits by time: training before validation before test, read from months and thinned to what memory holds."""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fraudlib import periods, trips
from fraudlib.engines import Engine
from fraudlib.errors import DataError

SPLITS: Final = ("train", "valid", "test")
_MONTHS: Final = re.compile(r"(\d{4}-\d{2}):(\d{4}-\d{2})")


def check_order(wanted: Mapping[str, str]) -> None:
    """Refuse periods that overlap or run backwards in time.

    Parameters
    ----------
    wanted : split -> period, earliest first; a period is one that `periods.find` takes.

    Raises
    ------
    DataError
        If a period does not end before the next begins; names both.

    Examples
    --------
    >>> check_order({"train": "2023-01:2023-03", "valid": "2023-04", "test": "2023-06-01:2023-06-10"})
    """
    for (before, first), (after, second) in pairwise(wanted.items()):
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


def load(
    data_dir: Path, service: str, period: str, max_rows: int, seed: int, engine: Engine = map
) -> tuple[pa.Table, int]:
    """Trips of a period, at most `max_rows` of them drawn evenly from its months, and how many there were.

    Each month is counted, then read as a stream of which the drawn rows are kept: memory holds the sample alone. The
    draw does not depend on the engine.

    Raises
    ------
    DataError
        If a month is missing or the period holds no trips.
    """
    pieces = months_of(period) if _MONTHS.fullmatch(period) else [period]
    found = [periods.find(data_dir, service, piece) for piece in pieces]
    counts = list(engine(periods.Period.count, found))
    if 0 in counts:
        empty = pieces[counts.index(0)]
        raise DataError(f"Expected {service} trips of {empty} in {data_dir}, found none; choose another period.")
    rng = np.random.default_rng(seed)
    draws = [_draw(rows, max_rows // len(pieces), rng) for rows in counts]
    table = pa.concat_tables(engine(_take, zip(found, draws, strict=True))).combine_chunks()
    return (trips.mark_simulated(table) if any(part.simulated for part in found) else table), sum(counts)


def _draw(rows: int, most: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Positions to keep, in order; None where all are."""
    return None if rows <= most else np.sort(rng.choice(rows, most, replace=False))


def _take(part: tuple[periods.Period, NDArray[np.int64] | None]) -> pa.Table:
    """Trips of a period at the given positions, all where these are None."""
    period, rows = part
    kept, first = [], 0
    for batch in period.batches():
        if rows is not None:
            last = first + len(batch)
            start, stop = np.searchsorted(rows, (first, last))
            batch, first = batch.take(pa.array(rows[start:stop] - first)), last
        kept.append(batch)
    return pa.Table.from_batches(kept, trips.TRIPS_SCHEMA)


def describe(data_dir: Path, service: str, wanted: Mapping[str, str], engine: Engine = map) -> dict[str, Any]:
    """Files behind the periods (split -> period) with sizes, hashes and rows, and whether any of them is simulated."""
    there = trips.months(data_dir, service)
    months = sorted({month for period in wanted.values() for month in months_of(period)})
    return trips.provenance([there[month] for month in months], engine)
