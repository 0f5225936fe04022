"""Scoring in spans and on a Dask cluster: the same bytes as one process, and one sentence when it cannot be done."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraudlib import engines, manifest, paths, scorefile, spans, splits, trips
from fraudlib.engines import Engine
from fraudlib.errors import BundleError, DataError, ParameterError, ServiceError
from fraudlib.scoring import Scorer

SAMPLE = paths.root() / "data/sample/green_tripdata_2023-05.parquet"
REAL = paths.root() / "data/raw"
CHUNK = 1000


def ignore(rows: int) -> None:
    """No progress bar."""


def bundle() -> Path:
    folder = manifest.current_bundle(paths.root() / "artifacts")
    assert folder is not None
    return folder


def months() -> list[Path]:
    """Two real months where they are, else the sample."""
    return sorted(REAL.glob("green_tripdata_2023-0[12].parquet")) or [SAMPLE]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """3,300 trips in files of 1,700 and 1,600; the trip at 999 was submitted again at 1,000, a minute later."""
    source = tmp_path / "in"
    source.mkdir()
    rows = trips.read(months()).slice(0, 3300).to_pylist()
    again = {name: rows[999][name] + timedelta(minutes=1) for name in ("pickup_datetime", "dropoff_datetime")}
    rows[999] |= {"trip_distance": 5.0, "fare_amount": 25.0, "pickup_location_id": 75, "dropoff_location_id": 41}
    rows[1000] = rows[999] | again
    table = pa.Table.from_pylist(rows, trips.TRIPS_SCHEMA)
    pq.write_table(table.slice(0, 1700), source / "green_tripdata_2023-01.parquet", row_group_size=300)
    pq.write_table(table.slice(1700), source / "green_tripdata_2023-02.parquet", row_group_size=300)
    return source


@pytest.fixture
def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What one process writes for the folder."""
    monkeypatch.setattr(scorefile, "CHUNK_ROWS", CHUNK)
    output = folder.parent / "alone.parquet"
    scorefile.score_file(folder, output, Scorer.load(bundle()), ignore)
    return output.read_bytes()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Dask cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="needs distributed: pip install 'fraudlib[dask]'")
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": "ERROR"}
    with distributed.LocalCluster(n_workers=2, host="127.0.0.1", **options) as running:
        yield running.scheduler_address


@pytest.mark.parametrize("rows", [1, 2000, 10_000])
def test_spans_write_what_one_process_writes(tmp_path: Path, folder: Path, alone: bytes, rows: int) -> None:
    """However an input is cut: the bytes are the same, and a repeated trip is found across the cut."""
    whole = spans.Span(folder, bundle(), 0, 3300, CHUNK)
    summary = spans.score_with(map, whole, tmp_path / "s.parquet", ignore, rows)
    assert (tmp_path / "s.parquet").read_bytes() == alone
    row = pq.read_table(tmp_path / "s.parquet").slice(1000, 1).to_pylist()[0]
    assert row["is_flagged"]
    assert row["reason_1"] == "repeats a trip of 1.0 minutes before"
    assert (summary.rows, summary.bundle_id) == (3300, bundle().name)


def test_a_cluster_writes_what_one_process_writes(tmp_path: Path, folder: Path, alone: bytes, cluster: str) -> None:
    """Two worker processes, the same bytes, and progress of every row."""
    seen: list[int] = []
    with engines.start("dask", cluster) as engine:
        spans.score_with(engine, spans.Span(folder, bundle(), 0, 3300, CHUNK), tmp_path / "s.parquet", seen.append, 1)
    assert (tmp_path / "s.parquet").read_bytes() == alone
    assert sum(seen) == 3300


def test_a_cluster_prepares_what_one_process_prepares(folder: Path, cluster: str) -> None:
    """The draw, the counts and the files' hashes are the same on two workers."""
    period = "2023-01:2023-02"

    def prepare(engine: Engine) -> tuple[pa.Table, int, dict[str, object]]:
        table, found = splits.load(folder, "green", period, 1000, 7, engine)
        return table, found, splits.describe(folder, "green", {"train": period}, engine)

    with engines.start("dask", cluster) as engine:
        theirs = prepare(engine)
    mine = prepare(map)
    assert theirs[0].equals(mine[0])
    assert theirs[1:] == mine[1:]
    assert (mine[0].num_rows, mine[1]) == (1000, 3300)


def test_a_cluster_takes_items_as_it_needs_them(cluster: str) -> None:
    """Results come in order, and of many items few are under way, so that memory does not grow with the input."""
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            drawn.append(item)
            yield -item

    with engines.start("dask", cluster) as engine:
        results = engine(abs, items())
        assert next(results) == 0
        assert len(drawn) <= 2 * engines.AHEAD
        assert list(results) == list(range(1, 50))


def test_what_fails_on_a_worker_is_told_here(tmp_path: Path, folder: Path, cluster: str) -> None:
    """A bundle or a file that a worker does not see is named, and no output is left."""
    whole = spans.Span(folder, tmp_path / "gone", 0, 3300, CHUNK)
    with engines.start("dask", cluster) as engine:
        with pytest.raises(BundleError, match="gone"):
            list(engine(spans.score_span, [whole]))
        with pytest.raises(DataError, match="nowhere"):
            list(engine(trips.count, [tmp_path / "nowhere.csv"]))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_engine_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another name is answered with those that there are; an address where nobody listens, with what to start."""
    with pytest.raises(ParameterError, match="local, dask"), engines.start("spark"):
        pass
    pytest.importorskip("distributed", reason="needs distributed: pip install 'fraudlib[dask]'")
    monkeypatch.setattr(engines, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ServiceError, match="dask scheduler"), engines.start("dask", "tcp://127.0.0.1:9"):
        pass
