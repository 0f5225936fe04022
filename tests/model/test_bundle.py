"""Bundles: what is sealed loads with the same scores; what was touched is refused with the reason."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load, save

from fraudlib import bundle, features, manifest
from fraudlib.errors import BundleError
from fraudlib.features import FEATURE_NAMES
from fraudlib.paths import MANIFEST


@pytest.fixture(scope="module")
def sealed(room, tmp_path_factory):
    """A sealed bundle of the small model."""
    folder = tmp_path_factory.mktemp("artifacts")
    x = features.build(room.valid, room.statistics)
    return bundle.seal(
        folder,
        "test-run-ab12",
        room.model,
        room.statistics,
        room.calibration,
        {"threshold": room.scorer.threshold, "chosen_by": "budget"},
        {"average_precision": 0.5},
        {"simulated": True},
        {"seed": 7},
        bundle.reference_histograms(x, room.scorer.score(room.valid).anomaly_score),
    )


@pytest.fixture
def copy(sealed, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(sealed, tmp_path / sealed.name)


def reseal(folder):
    """Make the manifest's hashes true again, as a careful forger would."""
    data = json.loads((folder / MANIFEST).read_bytes())
    for name in data["files"]:
        path = folder / name
        data["files"][name] = {"sha256": manifest.sha256(path), "bytes": path.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(data))


def test_loads_with_the_same_scores(room, sealed):
    """Sealed and loaded, the scorer gives the scores that the notebook saw."""
    loaded = bundle.load(sealed)
    expected = room.scorer.score(room.valid).anomaly_score
    np.testing.assert_allclose(loaded.scorer.score(room.valid).anomaly_score, expected, atol=2e-2)
    assert loaded.scorer.bundle_id == loaded.manifest.bundle_id == sealed.name
    assert loaded.manifest.features == list(FEATURE_NAMES)


def test_small_and_free_of_pickle(sealed):
    """Safetensors and JSON only, and small enough to commit."""
    assert {p.suffix for p in sealed.iterdir()} == {".json", ".safetensors"}
    assert sum(p.stat().st_size for p in sealed.iterdir()) < 1_000_000


def test_nothing_aside_is_left(sealed):
    """Sealing leaves the bundle and nothing else."""
    assert [p.name for p in sealed.parent.iterdir()] == [sealed.name]


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.json", "calibration.json", "golden.json"])
def test_one_byte_flipped(copy, name):
    """One flipped byte in any file is refused by that file's name."""
    path = copy / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(BundleError, match=name):
        bundle.load(copy)


def test_forged_weights_do_not_rescore(copy):
    """Other weights with true hashes are caught by the golden rows."""
    weights = load((copy / "model.safetensors").read_bytes())
    weights["head.layers.0.weight"] = weights["head.layers.0.weight"] * 1.5
    (copy / "model.safetensors").write_bytes(save(weights))
    reseal(copy)
    with pytest.raises(BundleError, match="golden"):
        bundle.load(copy)


def test_nan_weights(copy):
    """NaN in the weights is refused before anything is scored."""
    weights = load((copy / "model.safetensors").read_bytes())
    weights["head.layers.0.bias"][0] = float("nan")
    (copy / "model.safetensors").write_bytes(save(weights))
    reseal(copy)
    with pytest.raises(BundleError, match="finite"):
        bundle.load(copy)


def test_other_feature_order(copy):
    """Features in another order are refused with the position."""
    data = json.loads((copy / MANIFEST).read_bytes())
    data["features"][0], data["features"][1] = data["features"][1], data["features"][0]
    (copy / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match="position 0"):
        bundle.load(copy)


def test_parts_of_two_runs(copy):
    """A part that is no part of a bundle is refused with a sentence, not a traceback of its parser."""
    (copy / "calibration.json").write_text("{}")
    reseal(copy)
    with pytest.raises(BundleError, match="calibration"):
        bundle.load(copy)


def test_reference_shares_add_up(sealed):
    """Histogram shares and missing share of each feature add up to one."""
    reference = bundle.load(sealed).reference
    assert "anomaly_score" in reference
    for name, part in reference.items():
        assert sum(part["shares"]) + part["missing"] == pytest.approx(1.0, abs=1e-4), name
