"""The model for a few rows gives what the model gives."""

import numpy as np
import pytest

from fraudlib import features
from fraudlib.errors import ShapeError
from fraudlib.scoring import raw_scores
from fraudlib.stacked import FEW, StackedModel


@pytest.mark.parametrize("rows", [1, 5, FEW])
def test_one_pass_gives_what_many_give(room, rows):
    """Logits, surprises and expectations agree to the rounding of float32, missing fields included."""
    part = features.take(room.valid, slice(0, rows))
    for columns in (part, {name: part[name] for name in ("trip_distance", "fare_amount", "pickup_datetime")}):
        x = features.build(columns, room.statistics)
        usual = raw_scores(room.model, x)
        logits, surprise, expected = StackedModel(room.model)(x)
        np.testing.assert_allclose(logits[:, 0], usual.logit, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(logits[:, 1:], usual.blame, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(surprise, usual.surprise, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(expected, usual.expected, atol=2e-4, rtol=1e-4)


def test_another_shape_is_refused(room):
    """As the model refuses it."""
    with pytest.raises(ShapeError):
        StackedModel(room.model)(np.zeros((2, 3), dtype=np.float32))


def test_scores_do_not_depend_on_the_size_of_the_batch(room):
    """Either side of the limit, the scores and the reasons are the same."""
    many = room.scorer.score(features.take(room.valid, slice(0, FEW + 1)))
    few = room.scorer.score(features.take(room.valid, slice(0, FEW)))
    np.testing.assert_allclose(few.anomaly_score, many.anomaly_score[:FEW], atol=1e-4)
    assert (few.is_flagged == many.is_flagged[:FEW]).all()
    assert [[r["field"] for r in few.reasons[row]] for row in few.reasons] == [
        [r["field"] for r in many.reasons[row]] for row in few.reasons
    ]
