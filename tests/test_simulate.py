"""The simulated month: small, the same every time, labelled, and a record like the TLC's."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fraudlib import paths, simulate, trips
from fraudlib.errors import ParameterError

SAMPLE = paths.root() / "data" / "sample" / "green_tripdata_2023-05.parquet"
# Read here: a fixture clears FRAUDLIB_* before each test.
REAL = paths.resolve(os.environ.get("FRAUDLIB_TLC_DIR", "data/raw"))


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    """The committed month with canonical names."""
    return trips.read(SAMPLE).to_pandas()


def test_the_committed_sample_is_what_the_simulator_makes(tmp_path: Path):
    """The command gives the committed trips again, byte for byte under the pyarrow that wrote them."""
    result = CliRunner().invoke(simulate.main, [str(tmp_path / SAMPLE.name)])
    assert result.exit_code == 0, result.output
    again, committed = pq.read_table(tmp_path / SAMPLE.name), pq.read_table(SAMPLE)
    assert again.equals(committed, check_metadata=True)
    if pa.__version__ in pq.read_metadata(SAMPLE).created_by:
        assert (tmp_path / SAMPLE.name).read_bytes() == SAMPLE.read_bytes()


def test_the_sample_is_small_and_labelled():
    """At most a megabyte, and whoever reads it learns that it is simulated."""
    assert SAMPLE.stat().st_size <= 1_000_000
    assert trips.provenance([SAMPLE])["simulated"] is True


def test_another_seed_gives_other_trips():
    """The seed matters."""
    one, two = (simulate.simulate_month("2023-05", "green", 1000, seed) for seed in (1, 2))
    assert one["fare_amount"].to_pylist() != two["fare_amount"].to_pylist()


@pytest.mark.parametrize(("month", "base"), [("2022-03", 2.5), ("2023-05", 3.0)])
@pytest.mark.parametrize("service", ["green", "yellow"])
def test_fares_follow_the_tariff_of_the_month(month, base, service):
    """Metered city fares start at the base of the tariff in force and move in whole units."""
    table = simulate.simulate_month(month, service, 3000, 5)
    fare, code = (np.array(table[name].to_pylist(), dtype=float) for name in ("fare_amount", "RatecodeID"))
    metered = fare[(code == 1) & (fare >= base)]
    steps = (metered - base) / (0.7 if month > "2022-12" else 0.5)
    assert (np.abs(steps - np.round(steps)) < 0.02).mean() > 0.9
    assert len(metered) > 1500


def test_nulls_come_as_a_block():
    """Records of the second submission path lack rate code, payment and passengers together."""
    table = simulate.simulate_month("2023-05", "green", 5000, 3)
    missing = [
        np.array([v is None for v in table[n].to_pylist()]) for n in ("RatecodeID", "payment_type", "passenger_count")
    ]
    assert 0.02 < missing[0].mean() < 0.15
    assert (missing[0] == missing[1]).all()
    assert (missing[0] == missing[2]).all()


def test_each_provider_adds_up_in_its_own_way(sample: pd.DataFrame):
    """Vendor 2's totals are the sum of their parts; vendor 1 repeats surcharges, and nothing else, in extra and tax."""
    known = sample[sample.rate_code_id.notna()]
    parts = ["fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge"]
    gap = (known.total_amount - known[[*parts, "congestion_surcharge"]].sum(axis=1)).round(2)
    repeated = known.congestion_surcharge + known.improvement_surcharge
    assert (gap[known.vendor_id == 2].abs() < 0.005).all()
    first = known.vendor_id == 1
    assert ((gap + repeated)[first & (known.improvement_surcharge > 0)].abs() < 0.005).all()


def test_voids_undo_a_trip(sample: pd.DataFrame):
    """Negative totals are rare, vendor 2's, and nearly all have a positive twin."""
    voids = sample[sample.total_amount < 0]
    keys = ["vendor_id", "pickup_datetime", "dropoff_datetime", "pickup_location_id", "dropoff_location_id"]
    twins = voids.assign(total_amount=-voids.total_amount).merge(sample, on=[*keys, "total_amount"])
    assert 0.002 < len(voids) / len(sample) < 0.0035
    assert set(voids.vendor_id) == {2}
    assert 0.95 < len(twins) / len(voids) <= 1


def test_habits_of_records(sample: pd.DataFrame):
    """Tips are for cards, the JFK fare is flat, day-long stamps and reset clocks are there and rare."""
    hours = (sample.dropoff_datetime - sample.pickup_datetime).dt.total_seconds() / 3600
    stamped = hours > 20
    assert set(sample[stamped].vendor_id) == {2}
    assert 0.001 < stamped.mean() < 0.005
    assert (sample[(sample.payment_type == 2) & (sample.total_amount > 0)].tip_amount > 0).mean() < 0.01
    flat = sample[(sample.rate_code_id == 2) & (sample.total_amount > 0)].fare_amount
    assert flat.isin([52.0, 70.0]).mean() > 0.95
    assert (sample.pickup_datetime.dt.year == 2009).sum() in (1, 2)
    assert sample.pickup_datetime.is_monotonic_increasing


def test_fares_stay_inside_what_a_meter_may_charge(sample: pd.DataFrame):
    """Base and miles below, base, miles and minutes above, for nearly all metered trips with a distance."""
    minutes = (sample.dropoff_datetime - sample.pickup_datetime).dt.total_seconds() / 60
    kept = (sample.rate_code_id == 1) & (sample.total_amount > 0) & minutes.between(2, 180) & (sample.trip_distance > 0)
    low = 3.0 + 3.5 * sample.trip_distance
    assert (sample.fare_amount[kept] < low[kept] - 1).mean() < 0.01
    assert (sample.fare_amount[kept] > (low + 0.7 * minutes)[kept] + 1).mean() < 0.003


@pytest.mark.parametrize(
    ("month", "service", "rows"),
    [("2023-5", "green", 2000), ("May", "green", 2000), ("2023-05", "blue", 2000), ("2023-05", "green", 10)],
)
def test_what_cannot_be_simulated(month: str, service: str, rows: int):
    """A month, service or size that makes no sense is refused."""
    with pytest.raises(ParameterError, match="Expected"):
        simulate.simulate_month(month, service, rows, 1)


def _quantiles(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Quartiles of what a trip is, over metered city trips of vendor 2."""
    minutes = (frame.dropoff_datetime - frame.pickup_datetime).dt.total_seconds() / 60
    kept = (frame.rate_code_id == 1) & (frame.vendor_id == 2) & minutes.between(2, 120) & (frame.trip_distance > 0.3)
    miles, minutes, fare = frame.trip_distance[kept], minutes[kept], frame.fare_amount[kept]
    position = (fare - 3.0 - 3.5 * miles) / (0.7 * minutes)
    values = {"miles": miles, "minutes": minutes, "fare": fare, "mph": 60 * miles / minutes, "position": position}
    return {name: np.quantile(v, [0.1, 0.25, 0.5, 0.75, 0.9]) for name, v in values.items()}


def test_quartiles_lie_beside_real_months(sample: pd.DataFrame):
    """Distance, duration, fare, speed and the fare's place in the tariff are within a fifth of real months'."""
    files = [trips.months(REAL, "green").get(month) for month in ("2023-04", "2023-06")]
    if None in files:
        pytest.skip("green 2023-04 and 2023-06 are not here; set FRAUDLIB_TLC_DIR to a folder of TLC files")
    real, simulated = _quantiles(trips.read(files).to_pandas()), _quantiles(sample)
    for name, values in real.items():
        assert np.allclose(simulated[name], values, rtol=0.2, atol=0.02), name
