"""Periods of trips: the months or days that a split is made of, found in a folder of months and read as a stream."""

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from fraudlib import trips
from fraudlib.errors import DataError, ParameterError

_PERIOD: Final = re.compile(r"(\d{4}-(?:0[1-9]|1[0-2]))(-\d{2})?(?::(\d{4}-(?:0[1-9]|1[0-2]))(-\d{2})?)?")


@dataclass(frozen=True)
class Period:
    """Trips of a period, read from their files as often as wanted.

    Attributes
    ----------
    files : (month "YYYY-MM", its file), in order.
    first, last : days, datetime64[D], both included.
    """

    files: tuple[tuple[str, Path], ...]
    first: np.datetime64
    last: np.datetime64

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The trips as batches of TRIPS_SCHEMA, at constant memory; see `trips.batches` for errors."""
        for month, path in self.files:
            begin, end = np.datetime64(month, "D"), _last_day(month)
            whole = self.first <= begin and end <= self.last
            for batch in trips.batches(path):
                yield batch if whole else self._of_days(batch, begin, end)

    def _of_days(self, batch: pa.RecordBatch, begin: np.datetime64, end: np.datetime64) -> pa.RecordBatch:
        day = batch.column("pickup_datetime").to_numpy(zero_copy_only=False).astype("datetime64[D]")
        day = np.clip(np.where(np.isnat(day), begin, day), begin, end)
        return batch.filter(pa.array((day >= self.first) & (day <= self.last)))

    def count(self) -> int:
        """Number of trips; whole months in parquet are not read for it."""
        if all(self.first <= np.datetime64(month, "D") and _last_day(month) <= self.last for month, _ in self.files):
            return sum(trips.count(path) for _, path in self.files)
        return sum(map(len, self.batches()))

    @property
    def simulated(self) -> bool:
        """Whether a file says that its trips are simulated."""
        return any(trips.is_simulated(path) for _, path in self.files)


def _last_day(month: str) -> np.datetime64:
    year, number = map(int, month.split("-"))
    return np.datetime64(f"{month}-{calendar.monthrange(year, number)[1]}", "D")


def _days(period: str) -> tuple[np.datetime64, np.datetime64]:
    """First and last day (datetime64[D], inclusive) of a period."""
    match = _PERIOD.fullmatch(period)
    whole = match is not None and match[2] is None
    if match is None or (match[3] is not None and whole != (match[4] is None)):
        raise ParameterError(
            f"Expected a period like 2023-01, 2023-01:2023-03 or 2023-05-01:2023-05-20, found {period!r}; correct it."
        )
    start, end = match[1] + (match[2] or ""), (match[3] or match[1]) + ((match[4] if match[3] else match[2]) or "")
    try:
        first = np.datetime64(start, "D")
        last = _last_day(end[:7]) if whole else np.datetime64(end, "D")
    except ValueError as error:
        raise ParameterError(f"Expected days of the calendar, found {period!r}; correct it.") from error
    if last < first:
        raise ParameterError(f"Expected a period that ends after it begins, found {period!r}; swap its ends.")
    return first, last


def find(data_dir: str | Path, service: str, period: str) -> Period:
    """Files of a period in a folder of months.

    Parameters
    ----------
    period : `2023-01`, `2023-01:2023-03` (months, inclusive) or `2023-05-01:2023-05-20` (days, inclusive, by pickup).
        Rows whose clock lies outside the file's month count to the nearest day of it, null pickups to its first.

    Raises
    ------
    DataError : a month is missing; the message lists those that are there.
    ParameterError : the period cannot be read.
    """
    first, last = _days(period)
    there = trips.months(data_dir, service)
    wanted = [str(month) for month in np.arange(first.astype("datetime64[M]"), last.astype("datetime64[M]") + 1)]
    for month in wanted:
        if month not in there:
            raise DataError(
                f"Expected {service} trips of {month} in {Path(data_dir)}, found months: {', '.join(there) or 'none'}; "
                f"fetch it with `python -m fraudlib.trips {data_dir} --service {service} --month {month}`."
            )
    return Period(tuple((month, there[month]) for month in wanted), first, last)


def load(data_dir: str | Path, service: str, period: str) -> pa.Table:
    """Trips of a period as one table of TRIPS_SCHEMA; see `find` for rules and errors.

    Raises
    ------
    DataError : also where the period holds no trips.
    """
    found = find(data_dir, service, period)
    table = pa.Table.from_batches(found.batches(), trips.TRIPS_SCHEMA)
    if not len(table):
        raise DataError(f"Expected {service} trips of {period} in {Path(data_dir)}, found none; choose another period.")
    return trips.mark_simulated(table) if found.simulated else table
