"""The soak's own arithmetic: a leak is seen, noise is not taken for one."""

from pathlib import Path

import numpy as np
import pytest

from bench import figure, soak
from fraudlib import manifest
from fraudlib.scoring import Scorer


def looks(
    slope_mib_per_hour: float, descriptors: tuple[int, int] = (20, 20), blocks_per_million: float = 0.0
) -> soak.Looks:
    """Half an hour of looks at processes that grow, with noise of a third of a megabyte and a jump at the start.

    400 transactions a second are sent.
    """
    seconds = np.arange(0, 1800, 2.0)
    noise = np.random.default_rng(7).normal(0, 0.3, len(seconds))
    memory = 300 - 40 * np.exp(-seconds / 60) + slope_mib_per_hour * seconds / 3600 + noise
    sent = (400 * seconds).astype(int)
    found = soak.Looks(seconds=seconds.tolist(), sent=sent.tolist())
    for name in soak.LOOKED_AT:
        found.memory_mib[name] = memory.tolist()
        found.descriptors[name] = np.where(seconds < 1400, *descriptors).tolist()
        found.threads[name] = [4] * len(seconds)
    found.tasks = {name: [12] * len(seconds) for name in found.tasks}
    blocks = 300_000 + blocks_per_million * sent / 1e6 + 500 * noise
    found.blocks = {name: blocks.astype(int).tolist() for name in found.blocks}
    return found


@pytest.mark.parametrize("leak", [0.0, 6.0])
def test_the_slope_is_that_of_the_leak(leak: float) -> None:
    """The warm-up's jump and the noise leave the slope within half a MiB an hour of the truth."""
    figures = looks(leak).figures(warm=720)["worker"]
    assert figures["slope_mib_per_hour"] == pytest.approx(leak, abs=0.5)
    low, high = figures["slope_interval"]
    assert low < figures["slope_mib_per_hour"] < high


def test_a_leak_of_objects_is_told_from_one_of_the_allocator() -> None:
    """Memory and Python's blocks have a slope a million transactions each; 400 a second are 1.44 million an hour."""
    own, foreign = (looks(14.4, blocks_per_million=n).figures(720) for n in (90_000, 0))
    for figures in (own, foreign):
        assert figures["broker"]["slope_mib_per_million"] == pytest.approx(10.0, abs=0.5)
        assert "python_blocks_per_million" not in figures["broker"]
    assert own["api"]["python_blocks_per_million"] == pytest.approx(90_000, rel=0.02)
    assert foreign["worker"]["python_blocks_per_million"] == pytest.approx(0, abs=1_000)
    assert foreign["worker"]["python_blocks"] == pytest.approx(300_000, rel=0.01)


def test_descriptors_that_pile_up_are_told() -> None:
    """Medians of the first and the second half after the warm-up stand side by side."""
    assert looks(0.0).figures(720)["api"]["descriptors"] == [20, 20]
    assert looks(0.0, (20, 31)).figures(720)["api"]["descriptors"] == [20, 31]


def test_both_bundles_of_a_soak_are_real_ones(tmp_path: Path) -> None:
    """The copy under another name verifies and loads as the live one does, and the live one is current."""
    names = soak.twin(tmp_path)
    assert len(set(names)) == 2
    assert [Scorer.load(tmp_path / name).bundle_id for name in names] == names
    assert manifest.current_bundle(tmp_path) == tmp_path / names[0]


def test_the_figure_shows_every_process(tmp_path: Path) -> None:
    """Looks and events become a picture."""
    figure.soak(looks(1.0), [(60.0, "restart"), (90.0, "reload")], 720, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000
