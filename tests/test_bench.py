"""The bench measures what it says, and the page of results says what was measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import memory, page, results, topic
from fraudlib import bench, manifest, paths, trips
from fraudlib.errors import BundleError, ServiceError
from fraudlib.scoring import Scorer


def current() -> Path:
    """The default bundle."""
    folder = manifest.current_bundle(paths.root() / "artifacts")
    assert folder is not None
    return folder


def test_a_device_is_measured_by_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features, model and the whole have a rate for each size, on the device that is named."""
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    found = bench.measure(current(), "cpu", sizes=(1, 300))
    assert found["device"] == "cpu"
    assert [row["rows"] for row in found["table"]] == [1, 300]
    assert all(row[name] > 0 for row in found["table"] for name in ("features", "model", "score"))
    assert found["table"][1]["flagged_share"] < 0.1


def test_the_bundle_is_the_one_that_serves() -> None:
    """Loaded by PyTorch and numpy alone, it scores as the verified one does."""
    columns = bench.made_up_trips(100)
    served = Scorer.load(current()).score(columns).anomaly_score
    np.testing.assert_allclose(bench.load(current(), "cpu").score(columns).anomaly_score, served, atol=1e-6)


def test_two_devices_are_compared() -> None:
    """A device agrees with itself."""
    found = bench.agreement(current(), "cpu", rows=200)
    assert (found["largest_difference"], found["within"], found["verdicts_that_differ"]) == (0.0, True, 0)


def test_another_folder_is_no_bundle(tmp_path: Path) -> None:
    """One sentence says what was expected."""
    with pytest.raises(BundleError, match="expected a bundle of this version"):
        bench.load(tmp_path, "cpu")


# What comes with PyTorch.
BARE = {"torch", "torchgen", "functorch", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock"}
BARE |= {"fsspec", "typing_extensions", "fraudlib"}


def test_it_needs_pytorch_and_numpy_only() -> None:
    """A borrowed machine has little else."""
    code = f"""
import sys
class NotThere:
    def find_spec(self, name, path=None, target=None):
        if path is None and name not in sys.stdlib_module_names and name not in {BARE!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotThere())
from pathlib import Path
from fraudlib import bench
assert bench.report(Path({str(current())!r}), 1, [5])["numpy_threads_are_limited"] is False
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_page_quotes_the_results_and_nothing_else() -> None:
    """docs/benchmarks.md is made from docs/bench.json as it stands."""
    written = results.RESULTS.with_name("benchmarks.md").read_text()
    assert written == page.render(json.loads(results.RESULTS.read_text()))
    assert "quick run" not in written


def test_months_to_measure_memory_with(tmp_path: Path) -> None:
    """Twelve months of at least so many rows in all, which read as trips and say that they are simulated."""
    rows = memory.write_months(tmp_path, 600_000)
    months = trips.months(tmp_path, "green")
    assert len(months) == 12
    assert sum(map(trips.count, months.values())) == rows >= 600_000
    assert trips.is_simulated(months["2022-12"])


def test_memory_of_a_command_is_its_peak() -> None:
    """What a command held and gave back counts; one that fails is no measurement."""
    held = memory.run(sys.executable, "-c", "x = b'x' * 700_000_000; del x")
    assert held["peak_mb"] >= 700
    with pytest.raises(SystemExit, match="exit code 3"):
        memory.run(sys.executable, "-c", "raise SystemExit(3)")


def test_a_rate_leaves_out_what_came_before_the_first_look() -> None:
    """Whoever began before somebody looked is not credited with it; where all of it had come there is no rate."""
    assert topic.Curve([(1.0, 0), (2.0, 0), (3.0, 50), (4.0, 100)]).per_second == 50
    assert topic.Curve([(2.0, 40), (4.0, 100)]).per_second == 30
    assert topic.Curve([(2.0, 40), (4.0, 100)]).count == 100
    with pytest.raises(ServiceError, match="measure with more"):
        topic.Curve([(2.0, 100)]).per_second  # noqa: B018
