"""Reading trips: every schema to one table, values unchanged, and clear errors."""

import hashlib
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fraudlib import paths, periods, trips
from fraudlib.errors import DataError, FraudError, ParameterError, SchemaError

SAMPLE = paths.root() / "data" / "sample"
# Read here: a fixture clears FRAUDLIB_* before each test.
REAL = paths.resolve(os.environ.get("FRAUDLIB_TLC_DIR", "data/raw"))
MONTH = "green_tripdata_2023-05.parquet"
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


def test_camel_case_csv(tmp_path: Path) -> None:
    """Files of the era of coordinates read too: zones are null, coordinates are ignored."""
    path = tmp_path / "yellow_tripdata_sample_2016-01_latlon.csv"
    path.write_text(
        "vendorID,tpepPickupDateTime,tpepDropoffDateTime,passengerCount,tripDistance,puLocationId,startLon,rateCodeId,"
        "storeAndFwdFlag,fareAmount\n"
        "2,2016-01-06 12:09:13,2016-01-06 12:22:14,1,2.09,,-73.98,1,N,10.5\n"
    )
    row = trips.read(path).to_pylist()[0]
    assert row["pickup_location_id"] is None
    assert (row["passenger_count"], row["rate_code_id"], row["store_and_fwd_flag"]) == (1, 1, "N")
    assert row["service"] == "yellow"


def test_teaching_extract(tmp_path: Path) -> None:
    """In taxis.csv the colour is the service; zone names and payment words are not turned into codes."""
    path = tmp_path / "taxis.csv"
    path.write_text(
        "pickup,dropoff,passengers,distance,fare,tip,tolls,total,color,payment,pickup_zone\n"
        "2019-03-23 20:21:09,2019-03-23 20:27:24,1,1.6,7.0,2.15,0.0,12.95,yellow,credit card,Lenox Hill West\n"
        "2019-03-04 16:11:55,2019-03-04 16:19:00,1,0.79,5.0,0.0,0.0,9.3,green,cash,Harlem\n"
    )
    table = trips.read(path)
    assert table["service"].to_pylist() == ["yellow", "green"]
    assert table["tip_amount"].to_pylist() == [2.15, 0.0]
    assert table["payment_type"].null_count == table["pickup_location_id"].null_count == 2


def test_names_in_any_case(tmp_path: Path) -> None:
    """Airport_fee and airport_fee are one column, and both in one file are refused."""
    pq.write_table(green(Airport_fee=[1.25, 0.0]), tmp_path / MONTH)
    assert trips.read(tmp_path / MONTH)["airport_fee"].to_pylist() == [1.25, 0.0]
    pq.write_table(green(Airport_fee=[1.25, 0.0], airport_fee=[0.0, 0.0]), tmp_path / MONTH)
    with pytest.raises(SchemaError, match="airport_fee"):
        trips.read(tmp_path / MONTH)


def test_batches_are_the_table(tmp_path: Path) -> None:
    """Streaming gives the same rows in the same order, at most so many at a time."""
    path = next(SAMPLE.glob("*.parquet"))
    sizes, fares = [], []
    for batch in trips.batches(path, batch_rows=10_000):
        sizes.append(batch.num_rows)
        fares += batch.column("fare_amount").to_pylist()
    assert max(sizes) <= 10_000
    assert fares == trips.read(path)["fare_amount"].to_pylist()


def test_streaming_holds_little_in_memory(tmp_path: Path) -> None:
    """One row group of any size is decoded piece by piece, not at once."""
    path = tmp_path / MONTH
    sample = pq.read_table(next(SAMPLE.glob("*.parquet")))
    pq.write_table(pa.concat_tables([sample] * 15), path, row_group_size=1 << 30)
    held, before, rows = 0, pa.total_allocated_bytes(), 0
    for batch in trips.batches(path, batch_rows=8192):
        held, rows = max(held, pa.total_allocated_bytes() - before), rows + batch.num_rows
    assert rows == 15 * sample.num_rows
    assert held < 15 * sample.nbytes / 4


def test_a_folder_is_its_trip_files(tmp_path: Path) -> None:
    """Files with tripdata in their name are read by name; what lies beside them is not."""
    for month, fare in (("2023-06", 2.0), ("2023-05", 1.0)):
        pq.write_table(green(fare_amount=[fare, fare]), tmp_path / f"green_tripdata_{month}.parquet")
    (tmp_path / "taxi_zone_lookup.csv").write_text("LocationID,Borough\n1,EWR\n")
    assert trips.read(tmp_path)["fare_amount"].to_pylist() == [1.0, 1.0, 2.0, 2.0]


def test_columns_for_features() -> None:
    """Numbers become float64 with NaN, times datetime64[us], green is 0."""
    table = periods.load(SAMPLE, "green", "2023-05-01:2023-05-02")
    columns = trips.to_columns(table)
    assert columns["fare_amount"].dtype == np.float64
    assert columns["pickup_datetime"].dtype == np.dtype("datetime64[us]")
    assert set(columns["service"]) == {0.0}
    assert np.isnan(columns["rate_code_id"]).any()


def test_days_of_a_month_are_the_month() -> None:
    """Day ranges that cover a month give each of its rows once, reset clocks included."""
    parts = [periods.load(SAMPLE, "green", p).num_rows for p in ("2023-05-01:2023-05-19", "2023-05-20:2023-05-31")]
    assert sum(parts) == periods.load(SAMPLE, "green", "2023-05").num_rows


def test_rows_outside_the_month_count_to_its_nearest_day(tmp_path: Path) -> None:
    """A reset clock belongs to the first day of the file's month, a late one to the last."""
    pq.write_table(green(lpep_pickup_datetime=[datetime(2009, 1, 1), datetime(2023, 6, 1, 0, 3)]), tmp_path / MONTH)
    fares = [
        periods.load(tmp_path, "green", period)["fare_amount"].to_pylist()
        for period in ("2023-05-01:2023-05-02", "2023-05-30:2023-05-31")
    ]
    assert fares == [[12.5], [-3.0]]


def test_months_of_a_folder(tmp_path: Path) -> None:
    """Full months win over samples and parquet over CSV; the other service and other files do not count."""
    names = [
        "yellow_tripdata_2019-02.parquet",
        "yellow_tripdata_sample_2019-02.csv",
        "yellow_tripdata_sample_2016-01_latlon.csv",
        "green_tripdata_2019-03.parquet",
        "taxis.csv",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert {month: path.name for month, path in trips.months(tmp_path, "yellow").items()} == {
        "2016-01": names[2],
        "2019-02": names[0],
    }


def test_missing_month() -> None:
    """A month that is not there is named, with those that are and the command that fetches it."""
    with pytest.raises(DataError, match=r"2031-01.*2023-05.*python -m fraudlib\.trips"):
        periods.load(SAMPLE, "green", "2031-01")


@pytest.mark.parametrize("period", ["2023-13", "2023-02-30", "2023-03:2023-01", "2023-01:2023-02-03", "May"])
def test_a_period_that_is_none(period: str) -> None:
    """A period that cannot be read is quoted."""
    with pytest.raises(ParameterError, match=period):
        periods.load(SAMPLE, "green", period)


def test_provenance_and_the_mark_of_simulated_trips(tmp_path: Path) -> None:
    """Files are told by size, hash and rows; the mark of simulated trips survives reading and writing again."""
    path = next(SAMPLE.glob("*.parquet"))
    entry = trips.provenance([path])["files"][0]
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry["rows"], entry["bytes"]) == (trips.read(path).num_rows, path.stat().st_size)
    pq.write_table(periods.load(SAMPLE, "green", "2023-05-01:2023-05-02"), tmp_path / "trips_train.parquet")
    assert trips.provenance([tmp_path / "trips_train.parquet"])["simulated"] is True
    pq.write_table(green(), tmp_path / MONTH)
    assert trips.provenance([tmp_path / MONTH])["simulated"] is False


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


def test_a_code_that_is_not_whole_names_the_column(tmp_path: Path) -> None:
    """1.5 is no rate code: it is refused rather than rounded."""
    pq.write_table(green(RatecodeID=[1.5, None]), tmp_path / MONTH)
    with pytest.raises(SchemaError, match="rate_code_id"):
        trips.read(tmp_path / MONTH)


def test_csv_errors(tmp_path: Path) -> None:
    """Text in a number is told by its column, a header without rows as such, a short line as damage."""
    path, header = tmp_path / "green_tripdata_2023-05.csv", "lpep_pickup_datetime,dropoff,trip_distance,fare_amount\n"
    row = "2023-05-01 10:00:00,2023-05-01 10:09:00,1.5,"
    for text, error, message in (
        (header + row + "free\n", SchemaError, "fare_amount"),
        (header, DataError, "without rows"),
        (header + row + "9.3\n2023-05", DataError, "truncated"),
    ):
        path.write_text(text)
        with pytest.raises(error, match=message):
            trips.read(path)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_truncated_parquet(tmp_path: Path, keep: int) -> None:
    """An empty or cut file is one sentence that names it."""
    path = tmp_path / "green_tripdata_2023-05.parquet"
    path.write_bytes(next(SAMPLE.glob("*.parquet")).read_bytes()[:keep])
    with pytest.raises(FraudError, match="green_tripdata_2023-05"):
        trips.read(path)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What the TLC's address serves: bodies by file name; a body that starts with "cut" ends early."""
    bodies: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bodies.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"") + 9 * (body or b"").startswith(b"cut")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(trips, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(tmp_path: Path, site: dict[str, bytes]) -> None:
    """A published month gets its name once it is whole, and is not fetched again."""
    pq.write_table(green(), tmp_path / "served.parquet")
    site[MONTH] = (tmp_path / "served.parquet").read_bytes()
    path = trips.download(tmp_path / "raw", "green", "2023-05")
    assert (path.name, path.read_bytes()) == (MONTH, site[MONTH])
    site.clear()
    assert trips.download(tmp_path / "raw", "green", "2023-05") == path


@pytest.mark.parametrize(("body", "message"), [(None, "404"), (b"cut", "bytes|closed"), (b"<html>", "something else")])
def test_download_that_fails_leaves_nothing(
    tmp_path: Path, site: dict[str, bytes], body: bytes | None, message: str
) -> None:
    """A month that is missing, cut short or no trips is refused with its address, and no file stays behind."""
    if body is not None:
        site[MONTH] = body
    with pytest.raises(DataError, match=rf"http://127.*{MONTH}.*({message})"):
        trips.download(tmp_path, "green", "2023-05")
    assert list(tmp_path.iterdir()) == []


def test_download_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the message has the address and the way by hand."""
    monkeypatch.setattr(trips, "BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=rf"http://127\.0\.0\.1:9/{MONTH}.*by hand"):
        trips.download(tmp_path, "green", "2023-05")


def test_real_months_read() -> None:
    """Every file of a folder of real months reads, when FRAUDLIB_TLC_DIR named one."""
    files = sorted(p for p in REAL.glob("*_tripdata_*") if p.suffix in (".parquet", ".csv"))
    if not files:
        pytest.skip("no real months here; set FRAUDLIB_TLC_DIR to a folder of TLC files")
    for path in files:
        table = trips.read(path)
        assert table.num_rows >= 5000
        assert table.schema == trips.TRIPS_SCHEMA


@pytest.mark.parametrize("skip", [0, 1, 299, 300, 700, 999])
def test_reading_from_a_row_on(tmp_path: Path, skip: int) -> None:
    """The first rows are left out over files, row groups and formats; what follows is what was there."""
    table = trips.read(next(SAMPLE.glob("*.parquet"))).slice(0, 1000).drop_columns(["service"])
    pq.write_table(table.slice(0, 700), tmp_path / "green_tripdata_2023-01.parquet", row_group_size=300)
    pyarrow.csv.write_csv(table.slice(700), tmp_path / "green_tripdata_2023-02.csv")
    found = pa.Table.from_batches(trips.batches(tmp_path, 128, skip=skip))
    assert found["total_amount"].to_pylist() == table["total_amount"].to_pylist()[skip:]
    assert [trips.count(path) for path in sorted(tmp_path.iterdir())] == [700, 300]
