"""Training: it learns, it repeats, and it sees what it should."""

import numpy as np
import torch

from fraudlib import features, fraud, scoring, training
from fraudlib.evaluation import recall_at
from fraudlib.model import FraudModel, ModelConfig


def test_losses_fall(room):
    """Both losses end below where they began, on the validation trips as well."""
    for curve in (room.curves.autoencoder, room.curves.head):
        assert curve[-1][0] < curve[0][0]
        assert curve[-1][1] < curve[0][1]


def test_overfits_a_few_rows(room):
    """Thirty-two trips can be learned by heart, or the network is not connected."""
    x = features.build(features.take(room.train, slice(0, 32)), room.statistics)
    config = training.TrainingConfig(epochs=250, batch_size=32, learning_rate=1e-2)
    training.seed_everything(1)
    model, curves = FraudModel(ModelConfig()), training.Curves()
    training.fit_autoencoder(model, x, x, config, curves, progress=False)
    assert curves.autoencoder[-1][0] < curves.autoencoder[0][0] - 1.0


def test_same_seed_same_weights(room):
    """Same seed and trips give the same scores to 1e-5."""
    few = features.take(room.train, slice(0, 1500))
    config = training.TrainingConfig(epochs=1, head_rounds=1, head_epochs=1, batch_size=512)
    logits = []
    for _ in range(2):
        model, _ = training.fit(few, few, room.statistics, None, config, progress=False)
        logits.append(scoring.raw_scores(model, features.build(few, room.statistics)).logit)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_finds_planted_fraud(room):
    """Even a model trained for seconds finds half of the easy kinds at one false positive in a hundred."""
    easy = [k for k in training.TAUGHT if fraud.KINDS[k].easy]
    planted = fraud.plant(room.valid, 0.05, 77, easy)
    score = room.scorer.score(planted.columns).anomaly_score
    assert recall_at(planted.label, score, 0.01) > 0.5


def test_surprises_of_missing_fields_are_zero(room):
    """What is not there cannot surprise."""
    columns = {"trip_distance": np.array([2.5]), "fare_amount": np.array([12.5]), "duration_minutes": np.array([15.0])}
    x = torch.from_numpy(features.build(columns, room.statistics))
    s = room.model.autoencoder.surprises(x)
    assert (s.surprise[0, 3:] == 0).all()
    assert (s.surprise[0, :3] > 0).all()


def test_shared_first_layer_equals_hiding(room):
    """Subtracting a hidden field's part from the first layer is the same as hiding it at the input."""
    net = room.model.autoencoder
    batch = torch.from_numpy(features.build(features.take(room.valid, slice(0, 64)), room.statistics))
    surprises = net.surprises(batch)
    x, observed = net.standardise(batch)
    for g in range(3):
        hide = torch.zeros_like(observed)
        hide[:, g] = 1.0
        location, log_spread = net.predict(net(x, observed, hide), g)
        z = ((x[:, g] - location) * torch.exp(-log_spread) * observed[:, g]).abs()
        torch.testing.assert_close(surprises.surprise[:, g], z, rtol=1e-3, atol=1e-3)
