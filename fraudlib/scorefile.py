"""Scores of a whole file or folder of trips: streamed in, streamed out, one row for each input row."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraudlib import trips
from fraudlib.errors import DataError
from fraudlib.reasons import in_words
from fraudlib.repeats import Lookback

if TYPE_CHECKING:
    from fraudlib.scoring import Scorer, Scores

CHUNK_ROWS: Final = 65_536
REASONS: Final = ("reason_1", "reason_2", "reason_3")
BUNDLE_KEY: Final = b"fraudlib.bundle"  # in the file's metadata: who scored
SCHEMA: Final = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("anomaly_score", pa.float64(), nullable=False),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("is_flagged", pa.bool_(), nullable=False),
        *(pa.field(name, pa.string()) for name in REASONS),
    ]
)


@dataclass(frozen=True)
class Summary:
    """What one call scored; `simulated` says whether any input file is a simulated one."""

    rows: int
    flagged: int
    seconds: float
    bundle_id: str
    simulated: bool

    def as_json(self) -> dict[str, Any]:
        """Summary as a JSON object, with the share flagged and the rows per second."""
        return {
            "rows": self.rows,
            "flagged": self.flagged,
            "share": round(self.flagged / self.rows, 6),
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows / self.seconds),
            "bundle_id": self.bundle_id,
            "simulated": self.simulated,
        }

    def __str__(self) -> str:
        kind = "simulated trips" if self.simulated else "trips"
        return (
            f"{self.rows:,} {kind} scored, {self.flagged:,} flagged ({self.flagged / self.rows:.2%}), "
            f"{self.seconds:.1f} s, {self.rows / self.seconds:,.0f} rows/s, bundle {self.bundle_id}"
        )


def is_simulated(source: Path) -> bool:
    """Whether a file, or any file of a folder, says that its trips are simulated."""
    files = source.iterdir() if source.is_dir() else [source]
    return any(trips.is_simulated(file) for file in files if file.is_file())


def total_rows(source: Path) -> int | None:
    """Rows of parquet files, None where counting them would mean to read the input."""
    files = trips.trip_files(source)
    if any(file.suffix.lower() != ".parquet" for file in files):
        return None
    return sum(map(trips.count, files))


def check_paths(source: Path, output: Path) -> None:
    """Refuse an output that could hurt the input or cannot be written.

    Raises
    ------
    DataError
        If the output is the input, lies inside it, is a folder, or has no writable folder.
    """
    folder = output.absolute().parent
    if output.is_dir():
        raise DataError(f"{output}: expected a file to write, found a folder; name a file, such as {output}/s.parquet")
    if not folder.is_dir():
        raise DataError(f"{output}: its folder {folder} does not exist; make it first")
    if output.exists() and output.samefile(source):
        raise DataError(f"{output}: input and output are the same file; name another output")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{output}: lies inside the input folder {source} and would be read as trips; write elsewhere")
    if not os.access(folder, os.W_OK):
        raise DataError(f"{output}: its folder {folder} is not writable for you; name another output")


def chunks(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Batches of any size as tables of `rows` rows, the last one of the rest, in order."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        while count + len(batch) >= rows:
            held.append(batch.slice(0, rows - count))
            yield pa.Table.from_batches(held).combine_chunks()
            batch, held, count = batch.slice(len(held[-1])), [], 0
        if len(batch):
            held.append(batch)
            count += len(batch)
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def scored(first_row: int, scores: "Scores", threshold: float) -> pa.Table:
    """Scores of one chunk as a table of SCHEMA.

    Parameters
    ----------
    first_row : int
        Position of the chunk's first row in the input.
    scores : Scores
        Scores of n rows.
    threshold : float
        Threshold of the bundle.
    """
    n = len(scores.anomaly_score)
    words: list[list[str | None]] = [[None] * n for _ in REASONS]
    for row, reasons in scores.reasons.items():
        for column, reason in zip(words, reasons, strict=False):
            column[row] = in_words(reason)
    columns = [
        pa.array(range(first_row, first_row + n), pa.int64()),
        pa.array(scores.anomaly_score, pa.float64()),
        pa.repeat(pa.scalar(threshold, pa.float64()), n),
        pa.array(scores.is_flagged, pa.bool_()),
        *(pa.array(column, pa.string()) for column in words),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def score_chunks(
    pieces: Iterable[pa.Table], scorer: "Scorer", first_row: int, lookback: Lookback
) -> Iterator[pa.Table]:
    """Scores of chunks that follow each other, each a table of SCHEMA.

    Parameters
    ----------
    first_row : position of the first chunk's first row in the input.
    lookback : knows the chunk before, if there is one.
    """
    for chunk in pieces:
        columns = trips.to_columns(chunk)
        minutes, voided = lookback.find(columns)
        scores = scorer.without_voids(scorer.with_repeats(scorer.score(columns), minutes), voided)
        yield scored(first_row, scores, scorer.threshold)
        first_row += chunk.num_rows


def score_file(source: Path, output: Path, scorer: "Scorer", progress: Callable[[int], object]) -> Summary:
    """Score every trip of `source` into the parquet file `output`, at constant memory; see `write`.

    Parameters
    ----------
    source : Path
        TLC parquet or CSV file, or a folder of them.
    scorer : Scorer
        The bundle in use.

    Raises
    ------
    DataError
        If the output cannot be written or the input holds no trip.
    SchemaError
        If the input is not trips; the message names the column.
    """
    check_paths(source, output)
    pieces = chunks(trips.batches(source, CHUNK_ROWS), CHUNK_ROWS)
    return write(source, output, score_chunks(pieces, scorer, 0, Lookback()), scorer.bundle_id, progress)


def write(
    source: Path, output: Path, tables: Iterable[pa.Table], bundle_id: str, progress: Callable[[int], object]
) -> Summary:
    """Write scores as they come; the output appears whole or not at all, renamed from a temporary name beside it.

    Parameters
    ----------
    output : Path
        Parquet file of SCHEMA, replaced where it exists.
    tables : of SCHEMA, one for each chunk, in order.
    progress : callable
        Told the number of rows after each chunk.
    """
    started = time.perf_counter()
    rows = flagged = 0
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        schema = SCHEMA.with_metadata({BUNDLE_KEY: bundle_id})
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
                rows += table.num_rows
                flagged += pc.sum(table.column("is_flagged")).as_py()
                progress(table.num_rows)
        if not rows:
            raise DataError(f"{source}: expected trips, found no row; nothing was written")
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, output)
    except OSError as err:
        raise DataError(f"{output}: could not be written ({err.strerror or err}); nothing of it was kept") from err
    finally:
        partial.unlink(missing_ok=True)
    return Summary(rows, flagged, time.perf_counter() - started, bundle_id, is_simulated(source))
