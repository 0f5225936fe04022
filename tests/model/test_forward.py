"""The pass on a CPU: the model's own results, on complete and on sparse records."""

import numpy as np
import pytest
import torch

from fraudlib import features
from fraudlib.forward import Forward
from fraudlib.model import READINGS, FraudModel, ModelConfig
from fraudlib.scoring import CHUNK, raw_scores


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_agrees_with_the_model(room, rows, missing):
    """Logits, surprises and expectations are the model's, whatever the batch's size and whatever is missing."""
    x = features.build(features.take(room.valid, slice(100, 100 + rows)), room.statistics)
    x[np.random.default_rng(rows).random(x.shape) < missing] = np.nan
    logit, surprise, expected = (part.T for part in Forward(room.model)(x.T))
    raw = raw_scores(room.model, x)
    np.testing.assert_allclose(logit, np.concatenate([raw.logit, raw.blame], axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surprise, raw.surprise, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(expected, raw.expected, rtol=1e-5, atol=1e-5)


def test_follows_the_sizes_of_the_model(room):
    """A model of other widths and another depth is passed through as well."""
    torch.manual_seed(3)
    model = FraudModel(ModelConfig(width=20, latent_dim=7, head_width=16, head_depth=3)).eval()
    x = features.build(features.take(room.valid, slice(0, 20)), room.statistics)
    logit, surprise, _ = (part.T for part in Forward(model)(x.T))
    raw = raw_scores(model, x)
    np.testing.assert_allclose(logit[:, :2], raw.logit, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surprise, raw.surprise, rtol=1e-4, atol=1e-4)


def test_a_hidden_field_tells_nothing_of_itself(room):
    """What a view hides is out of its sums: the fare changes nothing where every view that is read hides it."""
    x = features.build(features.take(room.valid, slice(0, 50)), room.statistics)
    other = x.copy()
    other[:, features.hides("fare_amount")] += 3.0
    run = Forward(room.model)
    first, second = (run(part.T)[2] for part in (x, other))
    of_fare = [r for r, name in enumerate(READINGS) if name.startswith("fare_amount/")]
    assert len(of_fare) == 3
    np.testing.assert_allclose(second[of_fare], first[of_fare], rtol=1e-4, atol=1e-4)
    assert np.abs(second - first).max() > 0.1


@pytest.mark.parametrize("rows", [CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_a_trip_scores_the_same_in_any_batch(room, rows):
    """Alone, in one pass, and on either side of where one pass ends and the next begins."""
    trips = features.take(room.valid, slice(0, rows))
    together = room.scorer.score(trips).anomaly_score
    assert together.shape == (rows,)
    for row in {0, CHUNK - 1, min(CHUNK, rows - 1), rows - 1}:
        alone = room.scorer.score(features.take(trips, slice(row, row + 1))).anomaly_score
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_a_batch_may_be_empty(room):
    """No rows, no scores, and the shapes that go with them."""
    none = features.take(room.valid, slice(0, 0))
    assert room.scorer.score(none).anomaly_score.shape == (0,)
    assert room.scorer.raw(features.by_feature(none, room.statistics)).surprise.shape == (0, len(READINGS))
