"""One feature path: shapes, missing fields, row-locality, and the trade's rules."""

import numpy as np
import pytest

from fraudlib import features
from fraudlib.features import FEATURE_NAMES, FIELDS


def feature(columns, statistics, name):
    return features.build(columns, statistics)[:, FEATURE_NAMES.index(name)]


def test_features_are_finite_or_missing(room):
    """Every feature is a finite float32 or NaN, in the stated order and shape."""
    x = features.build(room.valid, room.statistics)
    assert x.shape == (features.row_count(room.valid), len(FEATURE_NAMES))
    assert x.dtype == np.float32
    assert not np.isinf(x).any()


def test_features_are_row_local(room):
    """A row has the same features alone, in any batch and in any order."""
    together = features.build(room.valid, room.statistics)
    rows = np.array([4000, 17, 3, 999])
    alone = np.concatenate([features.build(features.take(room.valid, slice(r, r + 1)), room.statistics) for r in rows])
    np.testing.assert_array_equal(alone, together[rows])


def test_layouts_hold_the_same(room):
    """Row by row and feature by feature the values are the same, each in one piece of memory."""
    rows, columns = features.build(room.valid, room.statistics), features.by_feature(room.valid, room.statistics)
    np.testing.assert_array_equal(rows, columns.T)
    assert rows.flags.c_contiguous
    assert columns.flags.c_contiguous
    assert rows.dtype == columns.dtype == np.float32


def test_three_fields_are_enough(room):
    """Distance, fare and duration alone give the features made of them; all others are missing."""
    columns = {"trip_distance": np.array([2.5]), "fare_amount": np.array([12.5]), "duration_minutes": np.array([15.0])}
    x = features.build(columns, room.statistics)[0]
    there = {f.name for f in features.FEATURES if set(f.fields) <= {"trip_distance", "fare_amount", "duration_minutes"}}
    assert {name for name, value in zip(FEATURE_NAMES, x, strict=True) if not np.isnan(value)} == there


def test_duration_comes_from_the_times(room):
    """Pickup and drop-off times stand in for a duration that is not given."""
    times = {
        "pickup_datetime": np.array(["2023-05-02T10:00:00"], dtype="datetime64[us]"),
        "dropoff_datetime": np.array(["2023-05-02T10:12:30"], dtype="datetime64[us]"),
    }
    assert features.duration_minutes(times, 1) == pytest.approx([12.5])


@pytest.mark.parametrize(
    ("pickup", "expected"),
    [
        ("2022-12-15T17:00:00", 1.0),
        ("2022-12-20T17:00:00", 2.5),
        ("2022-12-20T21:00:00", 1.0),
        ("2022-12-15T21:00:00", 0.5),
        ("2022-12-24T17:00:00", 0.0),
        ("2022-12-20T12:00:00", 0.0),
    ],
)
def test_surcharge_by_date_and_hour(room, pickup, expected):
    """Rush hour on weekdays and night every day, by the tariff in force at the start of the trip."""
    columns = {
        "pickup_datetime": np.array([pickup], dtype="datetime64[us]"),
        "extra": np.array([expected]),
    }
    assert feature(columns, room.statistics, "extra_over_due_log") == pytest.approx([0.0])
    columns["extra"] = columns["extra"] + 1.0
    assert feature(columns, room.statistics, "extra_over_due_log") == pytest.approx([np.log(2.0)])


def test_extra_without_a_time(room):
    """Where nobody knows the hour, an extra that some hour allows is in order, and one that none does is not."""
    columns = {"extra": np.array([1.0, 2.5, 52.5]), "trip_distance": np.array([1.0, 1.0, 1.0])}
    assert feature(columns, room.statistics, "extra_over_due_log") == pytest.approx([0, 0, np.log(51.0)])


def test_the_meter_by_date(room):
    """The lowest fare of the meter is base plus miles, by the tariff in force."""
    columns = {
        "pickup_datetime": np.array(["2022-06-01T12:00", "2023-06-01T12:00"], dtype="datetime64[us]"),
        "trip_distance": np.array([2.0, 2.0]),
        "fare_amount": np.array([7.5, 10.0]),
        "duration_minutes": np.array([9.0, 9.0]),
    }
    assert feature(columns, room.statistics, "fare_over_low") == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_tariff_change_changes_no_honest_trip(room):
    """The same ride, charged by the meter of its day, looks the same before and after 2022-12-19."""
    columns = {
        "pickup_datetime": np.array(["2022-12-14T12:00", "2022-12-21T12:00"], dtype="datetime64[us]"),
        "dropoff_datetime": np.array(["2022-12-14T12:10", "2022-12-21T12:10"], dtype="datetime64[us]"),
        "trip_distance": np.array([2.0, 2.0]),
        "fare_amount": np.array([2.5 + 2.5 * 2 + 0.5 * 4, 3.0 + 3.5 * 2 + 0.7 * 4]),
        "extra": np.array([0.0, 0.0]),
        "mta_tax": np.array([0.5, 0.5]),
        "improvement_surcharge": np.array([0.3, 1.0]),
        "vendor_id": np.array([2.0, 2.0]),
    }
    before, after = features.build(columns, room.statistics)
    np.testing.assert_allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("pickup", "airport", "cbd", "unexplained"),
    [
        ("2023-06-01T12:00", 1.75, 0.0, 0.0),
        ("2025-02-01T12:00", 0.0, 0.75, 0.0),
        ("2025-02-01T12:00", 1.75, 0.75, 0.0),
        ("2024-06-01T12:00", 0.0, 0.75, 0.75),
        ("2025-02-01T12:00", 0.0, 5.75, 5.0),
    ],
)
def test_fees_belong_to_the_sum_as_far_as_they_are_due(room, pickup, airport, cbd, unexplained):
    """Airport and CBD fees are parts of a total from the day and up to the amount that the rules say."""
    parts = {"fare_amount": 20.0, "extra": 0.0, "airport_fee": airport, "cbd_congestion_fee": cbd}
    columns = {name: np.array([value]) for name, value in parts.items()}
    columns |= {"total_amount": np.array([sum(parts.values())]), "vendor_id": np.array([2.0])}
    columns["pickup_datetime"] = np.array([pickup], dtype="datetime64[us]")
    residual = features.signed_exp(feature(columns, room.statistics, "total_residual_log").astype(float))
    assert residual == pytest.approx([unexplained], abs=1e-4)


def test_hiding_a_part_hides_the_total():
    """A total would give its parts away."""
    hidden = features.hides("tip_amount")
    assert hidden[FEATURE_NAMES.index("total_log")]
    assert hidden[FEATURE_NAMES.index("tip_log")]
    assert not hidden[FEATURE_NAMES.index("distance_log")]


def test_every_field_is_in_a_feature():
    """No field is named that no feature uses, and no feature uses a field without a name."""
    assert {name for f in features.FEATURES for name in f.fields} == set(FIELDS)


def test_signed_log_inverts():
    """signed_exp undoes signed_log for amounts of any sign and size."""
    x = np.array([-250.0, -1.0, 0.0, 0.01, 52.0, 1e6])
    np.testing.assert_allclose(features.signed_exp(features.signed_log(x)), x, rtol=1e-9)


def test_empty_batch(room):
    """No rows give no features, and no error."""
    x = features.build({"trip_distance": np.zeros(0)}, room.statistics)
    assert x.shape == (0, len(FEATURE_NAMES))


def test_a_rounded_duration_is_no_submission_path(room):
    """Whole minutes tell of records whose times have no seconds; a client's own 15 minutes are just rounded."""
    index = features.FEATURE_NAMES.index("duration_whole_minutes")
    trip = {"trip_distance": np.array([2.5]), "fare_amount": np.array([12.5])}
    times = np.array(["2023-04-03T10:00:00", "2023-04-03T10:15:00"], dtype="datetime64[us]")
    stamped = trip | {"pickup_datetime": times[:1], "dropoff_datetime": times[1:]}
    rounded = trip | {"duration_minutes": np.array([15.0])}
    assert [features.build(c, room.statistics)[0, index] for c in (stamped, rounded)] == [1.0, 0.0]
