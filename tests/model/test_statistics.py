"""Training statistics: pairs, back-off, hours, and their JSON."""

import json

import numpy as np
import pytest

from fraudlib import features, statistics
from fraudlib.errors import DataError, SchemaError
from fraudlib.statistics import Statistics


def test_json_round_trip_gives_the_same_features(room):
    """What the bundle carries is what was fitted, to the precision that is written."""
    again = Statistics.from_json(json.loads(json.dumps(room.statistics.to_json())))
    a, b = features.build(room.valid, room.statistics), features.build(room.valid, again)
    np.testing.assert_allclose(a, b, atol=0.02)
    twice = Statistics.from_json(json.loads(json.dumps(again.to_json())))
    np.testing.assert_array_equal(b, features.build(room.valid, twice))


def test_a_pair_never_seen_has_a_sensible_distance(room):
    """The learned geometry predicts a pair from its two zones, better than the overall median does."""
    pairs = room.statistics.pairs(room.valid["pickup_location_id"], room.valid["dropoff_location_id"])
    miles = np.log(room.valid["trip_distance"] + 0.1)
    unseen = (pairs["count_log"] == 0) & (room.valid["trip_distance"] > 0.3)
    assert unseen.sum() > 50
    error = np.median(np.abs(miles - pairs["distance_log"])[unseen])
    naive = np.median(np.abs(miles - room.statistics.overall[0])[unseen])
    assert error < 0.7 * naive


def test_missing_zone_is_missing(room):
    """A missing zone gives missing pair statistics, not those of some other pair."""
    pairs = room.statistics.pairs(np.array([74.0, np.nan]), np.array([75.0, 75.0]))
    assert not np.isnan(pairs["distance_log"][0])
    assert all(np.isnan(values[1]) for values in pairs.values())


@pytest.mark.parametrize("zone", [-1.0, 266.0, 1e9])
def test_zones_off_the_map(room, zone):
    """A zone number that does not exist gets the overall values, not an error."""
    pairs = room.statistics.pairs(np.array([zone]), np.array([75.0]))
    assert np.isfinite(pairs["distance_log"]).all()


def test_too_few_trips():
    """Statistics of a handful of trips are refused with the number found."""
    columns = {
        "trip_distance": np.ones(5),
        "fare_amount": np.ones(5),
        "duration_minutes": np.full(5, 9.0),
        "pickup_datetime": np.full(5, np.datetime64("2023-05-01", "us")),
        "pickup_location_id": np.ones(5),
        "dropoff_location_id": np.ones(5),
    }
    with pytest.raises(DataError, match="found 5"):
        statistics.fit(columns)


def test_broken_json():
    """JSON that is not statistics is refused with a sentence."""
    with pytest.raises(SchemaError, match="notebook 01"):
        Statistics.from_json({"zones": []})
