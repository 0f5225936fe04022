"""Scoring: behaviour that users rely on, and reasons in their own units."""

import numpy as np
import pytest

from fraudlib import features, fraud
from fraudlib.errors import ServiceError, ShapeError
from fraudlib.scoring import pick_device

SHORT = {"trip_distance": 2.5, "fare_amount": 12.5, "duration_minutes": 15.0}


def score(room, **fields):
    return float(room.scorer.score({k: np.array([v]) for k, v in fields.items()}).anomaly_score[0])


def test_three_fields_get_a_sensible_score(room):
    """An ordinary short request passes; the same trip at 400 USD does not."""
    assert score(room, **SHORT) < room.scorer.threshold
    assert score(room, **{**SHORT, "fare_amount": 400.0}) > room.scorer.threshold


def test_batch_and_single_agree(room):
    """A trip scores the same alone and in a batch."""
    batch = room.scorer.score(room.valid).anomaly_score
    for row in (0, 1234, 4999):
        alone = room.scorer.score(features.take(room.valid, slice(row, row + 1))).anomaly_score
        np.testing.assert_allclose(alone, batch[row], atol=1e-5)


def test_ids_do_not_matter(room):
    """Columns that are no fields of a trip change nothing."""
    columns = dict(room.valid) | {"transaction_id": np.arange(features.row_count(room.valid), dtype=np.float64)}
    np.testing.assert_array_equal(room.scorer.score(columns).anomaly_score, room.scorer.score(room.valid).anomaly_score)


@pytest.mark.parametrize("field", ["fare_amount", "tip_amount", "tolls_amount", "extra"])
def test_a_hundred_times_is_more_abnormal(room, field):
    """An amount a hundred times as large is more abnormal in at least 99 of 100 trips that have it."""
    columns = features.take(room.valid, np.flatnonzero((room.valid[field] > 0.5) & (room.valid["total_amount"] > 0)))
    worse = {k: v.copy() for k, v in columns.items()}
    worse[field] = columns[field] * 100
    worse["total_amount"] = columns["total_amount"] + worse[field] - columns[field]
    a, b = (room.scorer.score(c).anomaly_score for c in (columns, worse))
    assert (b > a).mean() > 0.99


def test_reasons_of_flagged_rows_only(room):
    """Flagged rows have one to three reasons with the field's own observed value; the others have none."""
    planted = fraud.plant(room.valid, 0.05, 5)
    scores = room.scorer.score(planted.columns)
    assert set(scores.reasons) == set(np.flatnonzero(scores.is_flagged).tolist())
    for row, reasons in scores.reasons.items():
        assert 1 <= len(reasons) <= 3
        for reason in reasons:
            assert set(reason) == {"field", "observed", "expected", "surprise"}
            if reason["field"] in planted.columns:
                assert reason["observed"] == pytest.approx(float(planted.columns[reason["field"]][row]), abs=0.01)


def test_reasons_name_what_was_changed(room):
    """The first reason of a detected phantom toll or padded total is that field."""
    for kind, field in (("toll_phantom", "tolls_amount"), ("padded_total", "total_amount")):
        planted = fraud.plant(room.valid, 0.02, 9, [kind])
        scores = room.scorer.score(planted.columns)
        found = [row for row in np.flatnonzero(planted.label) if row in scores.reasons]
        assert len(found) > 10
        assert np.mean([scores.reasons[row][0]["field"] == field for row in found]) > 0.8


def test_empty_batch(room):
    """No rows give no scores, and no error."""
    scores = room.scorer.score({"trip_distance": np.zeros(0), "fare_amount": np.zeros(0)})
    assert len(scores.anomaly_score) == 0


def test_very_surprising_is_flagged(room):
    """A total that no honest trip comes near is flagged, whatever the head thinks."""
    columns = features.take(room.valid, slice(0, 500))
    columns["total_amount"] = columns["total_amount"] + 5000.0
    assert room.scorer.score(columns).is_flagged.mean() > 0.97


def test_wrong_shape(room):
    """Features of another width are refused with both shapes."""
    import torch

    with pytest.raises(ShapeError, match="found"):
        room.model(torch.zeros(3, 5))


def test_cuda_that_is_not_there():
    """Asking for a GPU on a machine without one is a sentence that names the setting."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ServiceError, match="FRAUDLIB_DEVICE"):
        pick_device("cuda:0")


def test_a_record_without_surcharges_is_not_suspicious_for_it(room):
    """A total without its parts proves nothing: they are not flagged wholesale, and no reason lacks a number."""
    gone = ("extra", "mta_tax", "improvement_surcharge", "congestion_surcharge", "vendor_id", "rate_code_id")
    columns = {name: values for name, values in room.valid.items() if name not in gone}
    scores = room.scorer.score(columns)
    assert scores.is_flagged.mean() < 0.2
    reasons = [reason for told in scores.reasons.values() for reason in told]
    assert all(np.isfinite([reason["observed"], reason["expected"]]).all() for reason in reasons)
    assert not {reason["field"] for reason in reasons} & {*gone, "total_amount"}
