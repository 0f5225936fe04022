"""A ride that is submitted again is found where both records lie side by side."""

import numpy as np

from fraudlib import features, repeats, trial


def test_a_trip_sent_twice_is_found(sample):
    """Nearly every copy is found, none of the originals is, and hardly any other trip."""
    both, again = trial.sent_twice(sample, 0.02, 3)
    found = ~np.isnan(repeats.find(both))
    assert found[again].mean() > 0.9
    assert found[~again].mean() < 0.005


def test_the_same_record_again_is_no_fraud(sample):
    """A record that is delivered twice, to the second, is not taken for another ride."""
    few = features.take(sample, slice(0, 500))
    twice = features.concat([few, few])
    assert np.isnan(repeats.find(twice)).sum() >= np.isnan(repeats.find(few)).sum() * 2 - 20


def test_pieces_of_a_file_are_held_against_each_other(sample):
    """A copy is found when the first record was in the piece before."""
    first = features.take(sample, slice(0, 2000))
    both, again = trial.sent_twice(first, 0.05, 4)
    lookback = repeats.Lookback()
    lookback.find(first)
    minutes, _ = lookback.find(features.take(both, again))
    assert (~np.isnan(minutes)).mean() > 0.9


def test_three_fields_repeat_nothing():
    """Trips without zones or times are all alike, and none is blamed for it."""
    columns = {"trip_distance": np.full(9, 2.5), "fare_amount": np.full(9, 12.5), "duration_minutes": np.full(9, 15.0)}
    assert np.isnan(repeats.find(columns)).all()
    assert np.isnan(repeats.find({**columns, "pickup_datetime": np.full(9, np.datetime64("NaT"))})).all()


def test_a_repeat_is_flagged_with_its_reason(room):
    """A repeat scores at least as high as it is rare among honest trips, and says what it repeats."""
    both, _ = trial.sent_twice(room.valid, 0.02, 5)
    minutes = repeats.find(both)
    plain = room.scorer.score(both)
    scores = room.scorer.with_repeats(plain, minutes)
    rows = np.flatnonzero(~np.isnan(minutes))
    assert (scores.anomaly_score >= plain.anomaly_score).all()
    assert (scores.anomaly_score[rows] >= room.calibration.repeat).all()
    assert scores.is_flagged[rows].all()
    assert {scores.reasons[r][0]["field"] for r in rows.tolist()} == {"pickup_datetime"}


def refunds(columns, rows):
    """The trips' refunds: the same ride with every amount negated."""
    back = features.take(columns, rows)
    amounts = (*features.AMOUNT_FIELDS[2:],)
    return back | {name: -back[name] for name in amounts}


def test_a_charge_that_is_taken_back_is_no_alert(room):
    """A charge and its refund are found wherever they lie, and neither is flagged, whatever else it looks like."""
    charged = np.flatnonzero((room.valid["fare_amount"] > 100) | room.scorer.score(room.valid).is_flagged)[:40]
    both = features.concat([room.valid, refunds(room.valid, charged)])
    voided = repeats.voided(both)
    assert voided[charged].all()
    assert voided[-len(charged) :].all()
    plain = room.scorer.score(both)
    scores = room.scorer.without_voids(plain, voided)
    assert plain.is_flagged[voided].any()
    assert not scores.is_flagged[voided].any()
    np.testing.assert_array_equal(scores.anomaly_score[~voided], plain.anomaly_score[~voided])
    assert scores.reasons.keys() == set(np.flatnonzero(scores.is_flagged).tolist())


def test_a_refund_of_another_amount_takes_nothing_back(room):
    """A refund that is a cent off, or of another minute, mirrors nothing."""
    charged = np.arange(0, 200)
    alone = repeats.voided(features.take(room.valid, charged))
    back = refunds(room.valid, charged)
    less, later = dict(back), dict(back)
    less["total_amount"] = back["total_amount"] + 0.01
    later["pickup_datetime"] = back["pickup_datetime"] + np.timedelta64(60, "s")
    for other in (less, later):
        both = features.concat([features.take(room.valid, charged), other])
        assert repeats.voided(both).sum() <= 2 * alone.sum()
