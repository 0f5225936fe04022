"""Months of taxi trips: read every schema of the TLC and its mirrors into one typed table, find months, fetch them.

Values are never changed: nothing is clipped, filled or dropped. A text column of payments ("cash", "credit card" in
one teaching extract) is not turned into TLC codes either; payment_type stays null there, as do the zones.
"""

import contextlib
import csv
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fraudlib.engines import Engine
from fraudlib.errors import DataError, FraudError, ParameterError, SchemaError
from fraudlib.schema import (
    BY_NAME,
    COLUMNS,
    NUMBER_COLUMNS,
    REQUIRED_COLUMNS,
    SERVICES,
    TIME_COLUMNS,
    Kind,
    canonical_name,
    service_of,
)

_TYPES: Final[dict[Kind, pa.DataType]] = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "time": pa.timestamp("us"),
    "text": pa.string(),
}
TRIPS_SCHEMA: Final = pa.schema([(c.name, _TYPES[c.kind]) for c in COLUMNS] + [("service", pa.string())])
SIMULATED_KEY: Final = b"fraudlib.simulated"
BASE_URL: Final = "https://d37ci6vzurychx.cloudfront.net/trip-data"
TIMEOUT_SECONDS: Final = 30
SMALL_BYTES: Final = 64 << 20
_SUFFIXES: Final = (".parquet", ".csv")
_MONTH_FILE: Final = re.compile(r"(green|yellow)_tripdata_(sample_)?(\d{4}-\d{2})(_latlon)?\.(parquet|csv)")
_CSV_COLUMN: Final = re.compile(r"In CSV column #(\d+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class _Source:
    """Where a file keeps each canonical column, and which service all its rows belong to."""

    path: Path
    columns: dict[str, str]
    service: str | None


def _describe(path: Path, names: Sequence[str]) -> _Source:
    columns: dict[str, str] = {}
    for name in names:
        # "color" (green, yellow) is the teaching extract's name for the service.
        canonical = "service" if name.strip().lower() == "color" else canonical_name(name)
        if canonical not in BY_NAME and canonical != "service":
            continue
        if canonical in columns:
            raise SchemaError(
                f"{path}: expected one column for {canonical}, found {columns[canonical]!r} and {name!r}; drop one."
            )
        columns[canonical] = name
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise SchemaError(
            f"{path} is not a file of trips: expected the column {missing[0]} in any of the TLC's spellings, found "
            f"{', '.join(names[:30]) or 'no columns'}; pass a TLC trip file."
        )
    prefix = path.name.split("_", 1)[0].lower()
    named = prefix if prefix in SERVICES else None
    return _Source(path, columns, service_of(columns["pickup_datetime"]) or named)


def _cast(array: pa.Array, name: str, path: Path) -> pa.Array:
    kind = BY_NAME[name].kind if name in BY_NAME else "text"
    found = array.type
    number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_dictionary(found)
    naive = pa.types.is_timestamp(found) and found.tz is None
    fits = {"integer": number, "float": number, "time": naive or text, "text": text}[kind]
    if not fits and not pa.types.is_null(found):
        wanted = {"integer": "whole numbers", "float": "numbers", "time": "times without a zone", "text": "text"}[kind]
        raise SchemaError(f"{path}: expected {wanted} in the column {name}, found {found}; write it with that type.")
    if kind == "integer" and pa.types.is_floating(found):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, found), array)
    try:
        return array.cast(_TYPES[kind])
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{path}: expected {kind} values in the column {name}: {error}; correct the file.") from error


def _typed(batch: pa.RecordBatch, source: _Source) -> pa.RecordBatch:
    arrays = []
    for field in TRIPS_SCHEMA:
        if field.name in source.columns:
            array = _cast(batch.column(source.columns[field.name]), field.name, source.path)
        elif field.name == "service" and source.service is not None:
            array = pa.repeat(pa.scalar(source.service), len(batch))
        else:
            array = pa.nulls(len(batch), field.type)
        arrays.append(array)
    return pa.record_batch(arrays, schema=TRIPS_SCHEMA)


def _open_parquet(path: Path) -> pq.ParquetFile:
    # Without pre-buffering a row group of any size is decoded piece by piece. A buffer allocates whatever size a page
    # claims, two gibibytes for a damaged file of ten kilobytes: small files are read without one.
    buffered = path.stat().st_size > SMALL_BYTES
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20 if buffered else 0)


def _parquet_batches(path: Path, batch_rows: int, skip: int) -> Iterator[pa.RecordBatch]:
    with _open_parquet(path) as file:
        source = _describe(path, file.schema_arrow.names)
        groups = list(range(file.num_row_groups))
        while groups and file.metadata.row_group(groups[0]).num_rows <= skip:
            skip -= file.metadata.row_group(groups.pop(0)).num_rows
        found = file.iter_batches(batch_rows, row_groups=groups, columns=list(source.columns.values()))
        for batch in _after(skip, found):
            yield _typed(batch, source)


def _after(skip: int, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in found:
        if skip < len(batch):
            yield batch.slice(skip)
        skip = max(skip - len(batch), 0)


def _csv_header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        return next(csv.reader(lines), [])


def _csv_batches(path: Path, batch_rows: int, skip: int) -> Iterator[pa.RecordBatch]:
    source = _describe(path, _csv_header(path))
    # Whole numbers are read as floats first: mirrors write "1.0" where a column has gaps.
    reads = {"integer": pa.float64(), "float": pa.float64(), "time": pa.timestamp("us"), "text": pa.string()}
    kinds = {name: BY_NAME[key].kind if key in BY_NAME else "text" for key, name in source.columns.items()}
    options = pa.csv.ConvertOptions(
        include_columns=list(kinds),
        column_types={name: reads[kind] for name, kind in kinds.items()},
        strings_can_be_null=True,
        timestamp_parsers=[pa.csv.ISO8601, "%m/%d/%Y %I:%M:%S %p"],
    )
    with pa.csv.open_csv(path, convert_options=options) as reader:
        for batch in _after(skip, reader):
            for start in range(0, len(batch), batch_rows):
                yield _typed(batch.slice(start, batch_rows), source)


def _file_batches(path: Path, batch_rows: int, skip: int = 0) -> Iterator[pa.RecordBatch]:
    if not path.is_file():
        raise DataError(f"Expected a trip file at {path}, found nothing; check the path or download the month.")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"Expected a .parquet or .csv file, found {path}; convert it or pass another.")
    if path.stat().st_size == 0:
        raise DataError(f"Expected trips in {path}, found an empty file; download the month again.")
    reader: Callable[[Path, int, int], Iterator[pa.RecordBatch]]
    reader = _parquet_batches if path.suffix.lower() == ".parquet" else _csv_batches
    rows = 0
    try:
        for batch in reader(path, batch_rows, skip):
            rows += len(batch)
            yield batch
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        if match := _CSV_COLUMN.match(detail):
            name = _csv_header(path)[int(match[1])]
            raise SchemaError(f"{path}: the column {name} is ill-typed: {match[2]}; correct the file.") from error
        raise DataError(
            f"Expected a whole {path.suffix[1:]} file at {path}, found it unreadable ({detail[:200]}); "
            "it may be truncated, download it again."
        ) from error
    if not rows:
        raise DataError(f"Expected trips in {path}, found a header without rows; download the month again.")


def trip_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files behind a path, a folder or several; see `batches`."""
    if not isinstance(path, (str, Path)):
        return [file for item in path for file in trip_files(item)]
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.name[0] != ".")
    files = [file for file in found if "tripdata" in file.name.lower()] or found
    if not files:
        raise DataError(f"Expected .parquet or .csv trip files in {path}, found none; download a month into it.")
    return files


def count(path: str | Path) -> int:
    """Rows of a file: what a parquet file says of itself, else counted; see `batches` for errors."""
    if Path(path).suffix.lower() == ".parquet":
        # What is wrong with the file, the reader says.
        with contextlib.suppress(pa.ArrowException, OSError):
            return int(pq.read_metadata(path).num_rows)
    return sum(map(len, _file_batches(Path(path), 65536)))


def batches(
    path: str | Path | Sequence[str | Path], batch_rows: int = 65536, skip: int = 0
) -> Iterator[pa.RecordBatch]:
    """Stream trips at constant memory.

    Parameters
    ----------
    path : a parquet or CSV file, a folder, or a sequence of these. Of a folder, the files with "tripdata" in their
        name are read, by name; where there are none, every parquet and CSV file.
    batch_rows : most rows in a batch.
    skip : rows left out at the start; whole files and row groups among them are not decoded, CSV is.

    Yields
    ------
    RecordBatch of TRIPS_SCHEMA; columns that a file lacks are null. Unknown columns are ignored. `service` comes from
    a column of that name, the spelling of the pickup column or the file name.

    Raises
    ------
    SchemaError : the file is not trips or a column has another type.
    DataError : a file is missing, empty or unreadable.
    """
    for file in trip_files(path):
        if skip and (rows := count(file)) <= skip:
            skip -= rows
            continue
        yield from _file_batches(file, batch_rows, skip)
        skip = 0


def read(path: str | Path | Sequence[str | Path], *, progress: bool = False) -> pa.Table:
    """Trips of a file, a folder or several as one table of TRIPS_SCHEMA; see `batches` for rules and errors.

    The table's metadata carries `fraudlib.simulated` where a file is marked so, and keeps it when written.
    """
    files = trip_files(path)
    parts: list[pa.RecordBatch] = []
    for file in tqdm(files, disable=not progress or len(files) < 2, desc="reading trips", unit="file"):
        parts.extend(_file_batches(file, 1 << 20))
    table = pa.Table.from_batches(parts, TRIPS_SCHEMA)
    return mark_simulated(table) if any(map(is_simulated, files)) else table


def mark_simulated(table: pa.Table) -> pa.Table:
    """The same table with metadata that says its trips are simulated."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), SIMULATED_KEY: b"true"})


def is_simulated(path: str | Path) -> bool:
    """Whether a parquet file says that its trips are simulated."""
    if Path(path).suffix.lower() != ".parquet":
        return False
    return bool((pq.read_schema(path).metadata or {}).get(SIMULATED_KEY) == b"true")


def to_columns(trips: pa.Table | pa.RecordBatch) -> dict[str, NDArray[Any]]:
    """Arrays of length n by canonical name, as features and scoring take them; text columns are left out.

    Numbers are float64 with NaN for null, times datetime64[us] with NaT; `service` is 0.0 green, 1.0 yellow, NaN
    unknown. The arrays may be read-only views of the table.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name in (*TIME_COLUMNS, *NUMBER_COLUMNS):
        column = trips.column(name)
        # Whole numbers beyond 2**53 are rounded: strange ones are data too.
        columns[name] = _numpy(column if name in TIME_COLUMNS else column.cast(pa.float64(), safe=False))
    codes = pc.index_in(trips.column("service"), value_set=pa.array(SERVICES, pa.string()))
    columns["service"] = _numpy(codes.cast(pa.float64()))
    return columns


def _numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    array = column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    return np.asarray(array)


def months(data_dir: str | Path, service: str) -> dict[str, Path]:
    """Files of one service in a folder by month "YYYY-MM", in order; a full month wins over a sample, parquet over CSV.

    Known names: `{service}_tripdata_{YYYY-MM}.parquet|csv`, also `_sample_` before and `_latlon` after the month.
    """
    found: dict[str, tuple[tuple[bool, bool, bool], Path]] = {}
    folder = Path(data_dir)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _MONTH_FILE.fullmatch(path.name)
        if match and match[1] == service:
            rank = (match[2] is not None, match[4] is not None, match[5] == "csv")
            found[match[3]] = min(found.get(match[3], (rank, path)), (rank, path))
    return {month: found[month][1] for month in sorted(found)}


def provenance(paths: Sequence[str | Path], engine: Engine = map) -> dict[str, Any]:
    """What the data is: `{"files": [{"name", "bytes", "sha256", "rows"}], "simulated": bool}`, in the given order."""
    files = trip_files(paths)
    return {"files": list(engine(_entry, files)), "simulated": any(map(is_simulated, files))}


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    rows = sum(map(len, _file_batches(path, 65536)))
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest, "rows": rows}


def download(
    data_dir: str | Path, service: str, month: str, *, progress: bool = True, base_url: str | None = None
) -> Path:
    """Fetch a month from the TLC into `data_dir` and return its path; a month that is there already is kept.

    `base_url` names another place with the TLC's file names, without a slash at its end.

    The file gets its name only after it was received whole and found to be trips.

    Raises
    ------
    DataError : the address cannot be reached, the month is not published, or what came is not trips.
    """
    if service not in SERVICES or not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise ParameterError(f"Expected green or yellow and a month like 2023-01, found {service!r} and {month!r}.")
    target = Path(data_dir) / f"{service}_tripdata_{month}.parquet"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    url = f"{base_url or BASE_URL}/{target.name}"
    partial = target.with_name(f".{os.getpid()}_{target.name}")
    try:
        _fetch(url, partial, progress)
        for _ in _file_batches(partial, 1 << 16):
            pass
        os.replace(partial, target)
    except (OSError, http.client.HTTPException) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise DataError(
            f"Could not download {url} ({reason}); check the connection and that the TLC has published the month, or "
            f"copy the file to {target} by hand."
        ) from error
    except FraudError as error:
        raise DataError(f"Expected trips from {url}, received something else ({error}); try again later.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, target: Path, progress: bool) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as out:  # noqa: S310
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, disable=not progress, desc=target.name, unit="B", unit_scale=True) as bar:
            while chunk := response.read(1 << 18):
                out.write(chunk)
                bar.update(len(chunk))
        if size and out.tell() != size:
            raise OSError(f"received {out.tell()} of {size} bytes")


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option("--service", type=click.Choice(SERVICES), default="green", show_default=True)
@click.option("--month", "wanted", multiple=True, required=True, help="YYYY-MM; repeat for several")
def main(data_dir: Path, service: str, wanted: tuple[str, ...]) -> None:
    """Download months of TLC trips into DATA_DIR."""
    for month in wanted:
        try:
            click.echo(download(data_dir, service, month))
        except FraudError as error:
            raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
