"""A few rows are scored as many are."""

import numpy as np
import torch

from fraudlib import features
from fraudlib.few import FEW, FewRows


def test_few_rows_score_as_many_do(room):
    """Logits, surprises and expectations in numpy are those of torch, rows with missing fields included."""
    columns = features.take(room.valid, slice(0, FEW))
    for name in ("rate_code_id", "tip_amount", "pickup_datetime"):
        gone = np.arange(FEW) % 5 == len(name) % 5
        blank = np.datetime64("NaT") if name == "pickup_datetime" else np.nan
        columns[name] = np.where(gone, blank, columns[name])
    x = features.build(columns, room.statistics)
    logits, surprise, expected = FewRows(room.model)(x)
    with torch.inference_mode():
        wanted, views = room.model(torch.from_numpy(x))
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surprise, views.surprise.numpy(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(expected, views.expected.numpy(), rtol=1e-4, atol=1e-3)
