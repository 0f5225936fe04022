"""Families left out of the teaching: really left out, carried from 02 to 04, and measured at one rate."""

import numpy as np
import pytest
import torch

from fraudlib import fraud, heldout, training, trial
from fraudlib.errors import DataError

QUICK = training.TrainingConfig(batch_size=512)


@pytest.fixture(scope="module")
def heads(room):
    return heldout.teach_all(room.model, room.train, room.valid, room.statistics, QUICK, 1, 4, 4000)


def test_a_family_is_really_left_out():
    """Of a family nothing is taught, of the others everything; one that is never taught is not offered."""
    for family in heldout.FAMILIES:
        kinds = heldout.taught_without(family)
        assert not [k for k in kinds if fraud.KINDS[k].family == family]
        assert {k for k in training.TAUGHT if fraud.KINDS[k].family != family} == set(kinds)
    assert "repeat" not in heldout.FAMILIES


def test_the_model_stays_as_it_is(room, heads):
    """The heads are new, the autoencoder is the run's, and the run's own head is not touched."""
    assert tuple(heads) == heldout.FAMILIES
    own = room.model.state_dict()
    for model in heads.values():
        state = model.state_dict()
        same = {k: torch.equal(own[k], v) for k, v in state.items()}
        assert all(equal for k, equal in same.items() if k.startswith("autoencoder."))
        assert not all(equal for k, equal in same.items() if k.startswith("head."))


def test_heads_come_back_as_written(room, heads, tmp_path):
    """What 02 writes 04 reads: the same families with the same logits."""
    heldout.write(tmp_path / "heads", heads)
    back = heldout.read(tmp_path / "heads", room.model)
    assert tuple(back) == tuple(heads)
    x = torch.zeros(3, len(room.model.autoencoder.mean))
    for family in heads:
        torch.testing.assert_close(back[family](x)[0], heads[family](x)[0])


def test_no_rounds_no_heads(room, tmp_path):
    """Without rounds nothing is taught, and 04 is told that nothing was measured."""
    none = heldout.teach_all(room.model, room.train, room.valid, room.statistics, QUICK, 0, 4, 4000)
    heldout.write(tmp_path / "heads", none)
    assert heldout.read(tmp_path / "heads", room.model) == {}


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_missing_or_broken_file_is_named(room, tmp_path, content):
    """The message says which file 02 has to write."""
    path = tmp_path / "left_out.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match="left_out"):
        heldout.read(path, room.model)


def test_families_are_measured_beside_the_full_model(room, heads):
    """Each family has its recall with and without teaching, its kinds, and the means lie within their intervals."""
    planted = trial.plant(room.valid, 0.05, 1, 41)
    scores = [room.scorer.score(c).anomaly_score for c in (room.valid, planted.columns)]
    found = heldout.measure(heads, room.scorer, room.valid, room.valid, planted, *scores)
    assert set(found["families"]) == set(heldout.FAMILIES)
    for family, part in found["families"].items():
        assert part["recall"]["low"] <= part["recall"]["value"] <= part["recall"]["high"]
        assert all(fraud.KINDS[kind].family == family for kind in part["by_kind"])
    for name in ("mean_recall", "mean_recall_taught"):
        assert 0 <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= 1
    assert found["mean_recall_taught"]["value"] > found["mean_recall"]["value"]
    assert heldout.measure({}, room.scorer, room.valid, room.valid, planted, *scores)["families"] == {}


def test_flags_keep_the_rate():
    """At most the stated share of honest trips scores as high as the lowest fraud that counts as found."""
    rng = np.random.default_rng(2)
    honest, found = np.round(rng.normal(size=3000), 2), rng.normal(2, 1, 500)
    flags = heldout.flagged_at(honest, found, 0.01)
    assert (honest >= found[flags].min()).mean() <= 0.01
    assert not heldout.flagged_at(np.full(10, 5.0), np.zeros(4), 0.01).any()
