"""The pass over a small batch: the model's own results, on complete and on sparse records."""

import numpy as np
import pytest
import torch

from fraudlib import features
from fraudlib.forward import MOST_ROWS, Forward
from fraudlib.model import FraudModel, ModelConfig
from fraudlib.scoring import raw_scores


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 7, MOST_ROWS])
def test_agrees_with_the_model(room, rows, missing):
    """Logits, surprises and expectations are the model's, whatever the batch's size and whatever is missing."""
    x = features.build(features.take(room.valid, slice(100, 100 + rows)), room.statistics)
    x[np.random.default_rng(rows).random(x.shape) < missing] = np.nan
    logit, surprise, expected = Forward(room.model)(x)
    raw = raw_scores(room.model, x)
    np.testing.assert_allclose(logit, np.concatenate([raw.logit, raw.blame], axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surprise, raw.surprise, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(expected, raw.expected, rtol=1e-5, atol=1e-5)


def test_follows_the_sizes_of_the_model(room):
    """A model of other widths and another depth is passed through as well."""
    torch.manual_seed(3)
    model = FraudModel(ModelConfig(width=20, latent_dim=7, head_width=16, head_depth=3)).eval()
    x = features.build(features.take(room.valid, slice(0, 20)), room.statistics)
    logit, surprise, _ = Forward(model)(x)
    raw = raw_scores(model, x)
    np.testing.assert_allclose(logit[:, :2], raw.logit, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surprise, raw.surprise, rtol=1e-4, atol=1e-4)


def test_scores_do_not_jump_where_the_pass_changes(room):
    """A trip scores the same in the largest small batch and in the smallest large one."""
    scores = [
        room.scorer.score(features.take(room.valid, slice(0, n))).anomaly_score[:MOST_ROWS]
        for n in (MOST_ROWS, MOST_ROWS + 1)
    ]
    np.testing.assert_allclose(*scores, atol=1e-5)
