"""Training: it learns, it repeats, and it sees what it should."""

import copy

import numpy as np
import torch

from fraudlib import features, fraud, scoring, training
from fraudlib.evaluation import recall_at
from fraudlib.features import AMOUNT_FIELDS
from fraudlib.model import PREDICTED, READING_FIELDS, READINGS, VIEWS, FraudModel, ModelConfig


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
    given = np.array([field in columns for field in (PREDICTED[p] for p in READING_FIELDS)])
    assert (s.surprise[0, ~given] == 0).all()
    assert (s.surprise[0, given] > 0).all()


def test_one_pass_equals_hiding(room):
    """All views in one pass see what hiding each view's fields at the input sees."""
    net = room.model.autoencoder
    batch = torch.from_numpy(features.build(features.take(room.valid, slice(0, 64)), room.statistics))
    surprises = net.surprises(batch)
    x, observed = net.standardise(batch)
    for v, view in enumerate(VIEWS):
        hide = net.view_hides[v].expand_as(observed)
        out = net.amounts(net(x, observed, hide))
        for field in set(view.read) & set(AMOUNT_FIELDS):
            g = AMOUNT_FIELDS.index(field)
            z = (x[:, g] - out[:, 2 * g]) * torch.exp(-out[:, 2 * g + 1].clamp(-4, 2)) * observed[:, g]
            mine = surprises.surprise[:, READINGS.index(f"{field}/{view.name}")]
            torch.testing.assert_close(mine, z.abs(), rtol=1e-3, atol=1e-3)


def test_changed_weights_are_not_scored_with_the_old_ones(room):
    """Weights laid out for scoring follow the model's own, through training and loading."""
    model = copy.deepcopy(room.model).eval()
    x = features.build(features.take(room.valid, slice(0, 8)), room.statistics)
    before = scoring.raw_scores(model, x).surprise
    with torch.no_grad():
        model.train().autoencoder.inputs.bias.add_(1.0)
    assert not np.allclose(before, scoring.raw_scores(model.eval(), x).surprise)


def test_worse_is_not_less_suspicious(room):
    """A flagged trip with an amount made worse stays flagged, all but one in fifty; honest ones become more suspicious.

    The model of this test is trained for seconds.
    """
    planted = fraud.plant(room.valid, 0.2, 5, training.TAUGHT).columns
    before, worse = (room.scorer.score(c) for c in (planted, fraud.worsen(planted, 6)))
    assert worse.is_flagged[before.is_flagged].mean() > 0.98
    assert np.median(worse.anomaly_score - before.anomaly_score) > 0.5
