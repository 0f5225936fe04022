"""The simulated month: small, the same every time, labelled, and a record like the TLC's."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from fraudlib import paths, simulate, trips

SAMPLE = paths.root() / "data" / "sample" / "green_tripdata_2023-05.parquet"


def test_the_committed_sample_is_what_the_simulator_makes():
    """The same month, rows and seed give the committed trips again."""
    again = simulate.simulate_month("2023-05", "green", 48_000, 7)
    committed = pq.read_table(SAMPLE)
    assert committed.column_names == again.column_names
    for name in ("lpep_pickup_datetime", "PULocationID", "trip_distance", "fare_amount", "total_amount"):
        assert committed[name].to_pylist() == again[name].to_pylist(), name


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
