"""Scoring in spans: parts of an input that many processes score at once, to the same bytes as one process would."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from fraudlib import engines, trips
from fraudlib.manifest import verify_files
from fraudlib.repeats import Lookback
from fraudlib.scorefile import CHUNK_ROWS, Summary, check_paths, chunks, score_chunks, score_file, write

if TYPE_CHECKING:
    from fraudlib.engines import Engine
    from fraudlib.scoring import Scorer
    from fraudlib.settings import Settings

SPAN_ROWS: Final = 4 * CHUNK_ROWS  # seconds of work, so that reading the chunk before weighs little


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of an input, scored by one call.

    Attributes
    ----------
    source : the whole input, a file or a folder.
    bundle : folder of the bundle that scores.
    first_row, rows : where the span begins, a multiple of `chunk_rows`, and its length.
    chunk_rows : rows that are scored in one go; what was scored so does not depend on how an input is cut into spans.
    device, threads, verify_key : settings of the scorer.
    """

    source: Path
    bundle: Path
    first_row: int
    rows: int
    chunk_rows: int = CHUNK_ROWS
    device: str = "cpu"
    threads: int = 1
    verify_key: Path | None = None

    def scorer(self) -> "Scorer":
        """The bundle, verified and loaded; once in a process.

        Raises
        ------
        BundleError
            If it is not there, not whole or not signed as asked.
        """
        return _scorer(self.bundle, self.device, self.threads, self.verify_key)


def parts(whole: Span, rows: int) -> list[Span]:
    """The span in parts of `rows` rows, rounded up to whole chunks."""
    step = -(-rows // whole.chunk_rows) * whole.chunk_rows
    starts = range(whole.first_row, whole.first_row + whole.rows, step)
    return [replace(whole, first_row=first, rows=min(step, whole.rows - first)) for first in starts]


def score_span(span: Span) -> list[pa.Table]:
    """Scores of a span by chunks, as tables of SCHEMA.

    The chunk before the span is read too: a ride may repeat one of its trips.

    Raises
    ------
    BundleError
        If the bundle is not there or not whole.
    """
    lookback, first = Lookback(), max(span.first_row - span.chunk_rows, 0)
    pieces = chunks(trips.batches(span.source, span.chunk_rows, skip=first), span.chunk_rows)
    if first < span.first_row:
        lookback.find(trips.to_columns(next(pieces)))
    wanted = islice(pieces, -(-span.rows // span.chunk_rows))
    return list(score_chunks(wanted, span.scorer(), span.first_row, lookback))


@cache
def _scorer(bundle: Path, device: str, threads: int, verify_key: Path | None) -> "Scorer":
    from fraudlib.scoring import Scorer

    return Scorer.load(bundle, device, threads, verify_key)


def score_with(
    engine: "Engine", whole: Span, output: Path, progress: Callable[[int], object], rows: int = SPAN_ROWS
) -> Summary:
    """Score like `score_file`, to the same bytes, by calls of `score_span` for parts of `rows` rows.

    Raises
    ------
    DataError, SchemaError, BundleError
        As `score_file`, and where a worker does not see the input or the bundle.
    """
    found = engine(score_span, parts(whole, rows))
    tables = (table for part in found for table in part)
    return write(whole.source, output, tables, verify_files(whole.bundle).bundle_id, progress)


def score(
    source: Path, output: Path, bundle: Path, settings: "Settings", engine: str, progress: Callable[[int], object]
) -> Summary:
    """Score every trip of `source` into the parquet file `output` by an engine; see `score_file` and `score_with`.

    Parameters
    ----------
    bundle : folder of the bundle that scores.
    settings : device and threads of the scorer, address of the cluster.
    engine : name, of `engines.ENGINES`.
    """
    check_paths(source, output)
    whole = Span(
        source.resolve(),
        bundle.resolve(),
        0,
        0,
        device=settings.device,
        threads=settings.score_threads,
        verify_key=settings.verify_key_file and settings.verify_key_file.resolve(),
    )
    if engine == "local":
        return score_file(source, output, whole.scorer(), progress)
    rows = sum(map(trips.count, trips.trip_files(source)))
    with engines.start(engine, settings.dask_address) as run:
        return score_with(run, replace(whole, rows=rows), output, progress)
