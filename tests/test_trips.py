"""Reading trips: every schema to one table, values unchanged, and clear errors."""

import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fraudlib import paths, trips
from fraudlib.errors import DataError, FraudError, SchemaError

SAMPLE = paths.root() / "data" / "sample"
TIMES = [datetime(2023, 5, 1, 10), datetime(2023, 5, 2, 11)]


def green(**changes: object) -> pa.Table:
    columns: dict[str, object] = {
        "VendorID": [2, 1],
        "lpep_pickup_datetime": TIMES,
        "lpep_dropoff_datetime": [datetime(2023, 5, 1, 10, 12), datetime(2023, 5, 2, 11, 5)],
        "RatecodeID": [1.0, None],
        "PULocationID": [74, 75],
        "DOLocationID": [75, 41],
        "trip_distance": [2.5, -0.1],
        "fare_amount": [12.5, -3.0],
        "payment_type": [1.0, None],
        "ehail_fee": pa.nulls(2),
    }
    return pa.table(columns | changes)


def test_values_are_not_changed(tmp_path: Path) -> None:
    """Negative amounts stay negative, nulls stay null, codes become integers, the service comes from the names."""
    pq.write_table(green(), tmp_path / "green_tripdata_2023-05.parquet")
    table = trips.read(tmp_path / "green_tripdata_2023-05.parquet")
    assert table["fare_amount"].to_pylist() == [12.5, -3.0]
    assert table["rate_code_id"].to_pylist() == [1, None]
    assert table["service"].to_pylist() == ["green", "green"]
    assert table["pickup_datetime"].to_pylist() == TIMES
    assert table.schema == trips.TRIPS_SCHEMA


def test_snake_case_csv(tmp_path: Path) -> None:
    """The renamed CSV samples read to the same table."""
    path = tmp_path / "yellow_tripdata_sample_2019-03.csv"
    path.write_text(
        "vendor_id,pickup_datetime,dropoff_datetime,trip_distance,rate_code_id,pickup_location_id,fare_amount\n"
        "1,2019-03-01 00:13:00,2019-03-01 00:20:00,1.5,1.0,230,7.5\n"
        ",2019-03-01 00:14:00,2019-03-01 00:21:00,2.0,,231,9.0\n"
    )
    table = trips.read(path)
    assert table["vendor_id"].to_pylist() == [1, None]
    assert table["service"].to_pylist() == ["yellow", "yellow"]
    assert table["pickup_datetime"].to_pylist()[0] == datetime(2019, 3, 1, 0, 13)


def test_batches_are_the_table(tmp_path: Path) -> None:
    """Streaming gives the same rows in the same order, at most so many at a time."""
    path = next(SAMPLE.glob("*.parquet"))
    sizes, fares = [], []
    for batch in trips.batches(path, batch_rows=10_000):
        sizes.append(batch.num_rows)
        fares += batch.column("fare_amount").to_pylist()
    assert max(sizes) <= 10_000
    assert fares == trips.read(path)["fare_amount"].to_pylist()


def test_columns_for_features() -> None:
    """Numbers become float64 with NaN, times datetime64[us], green is 0."""
    table = trips.load_period(SAMPLE, "green", "2023-05-01:2023-05-02", progress=False)
    columns = trips.to_columns(table)
    assert columns["fare_amount"].dtype == np.float64
    assert columns["pickup_datetime"].dtype == np.dtype("datetime64[us]")
    assert set(columns["service"]) == {0.0}
    assert np.isnan(columns["rate_code_id"]).any()


def test_days_of_a_month_are_the_month() -> None:
    """Day ranges that cover a month give each of its rows once, reset clocks included."""
    parts = [
        trips.load_period(SAMPLE, "green", p, progress=False).num_rows
        for p in ("2023-05-01:2023-05-19", "2023-05-20:2023-05-31")
    ]
    assert sum(parts) == trips.load_period(SAMPLE, "green", "2023-05", progress=False).num_rows


def test_missing_month() -> None:
    """A month that is not there is named, with the folder."""
    with pytest.raises(DataError, match="2031-01"):
        trips.load_period(SAMPLE, "green", "2031-01", progress=False)


@pytest.mark.parametrize("missing", ["fare_amount", "trip_distance", "lpep_pickup_datetime"])
def test_a_file_that_is_not_trips(tmp_path: Path, missing: str) -> None:
    """A file without a column that trips have is refused by that column's name."""
    pq.write_table(green().drop_columns([missing]), tmp_path / "green_tripdata_2023-05.parquet")
    with pytest.raises(SchemaError, match=missing.removeprefix("lpep_")):
        trips.read(tmp_path / "green_tripdata_2023-05.parquet")


def test_wrong_type_names_the_column(tmp_path: Path) -> None:
    """Text where an amount belongs is refused by the column's name."""
    pq.write_table(green(fare_amount=["a", "b"]), tmp_path / "green_tripdata_2023-05.parquet")
    with pytest.raises(SchemaError, match="fare_amount"):
        trips.read(tmp_path / "green_tripdata_2023-05.parquet")


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_parquet(tmp_path: Path, keep: int) -> None:
    """An empty or cut file is one sentence that names it."""
    path = tmp_path / "green_tripdata_2023-05.parquet"
    path.write_bytes(next(SAMPLE.glob("*.parquet")).read_bytes()[:keep])
    with pytest.raises(FraudError, match="green_tripdata_2023-05"):
        trips.read(path)


def test_real_months_read() -> None:
    """Every file of a folder of real months reads, when FRAUDLIB_TLC_DIR named one."""
    folder = os.environ.get("FRAUDLIB_TLC_DIR", "data/raw")
    files = sorted(p for p in paths.resolve(folder).glob("*_tripdata_*") if p.suffix in (".parquet", ".csv"))
    if not files:
        pytest.skip("no real months here; set FRAUDLIB_TLC_DIR to a folder of TLC files")
    for path in files:
        table = trips.read(path)
        assert table.num_rows >= 5000
        assert table.schema == trips.TRIPS_SCHEMA
