"""How fast a bundle scores on the devices that are there: `python -m fraudlib.bench [BUNDLE]`; prints one JSON object.

Needs PyTorch and numpy only, so that it runs on a borrowed machine with a GPU and little else. Scores made-up trips, of
which one in fifty is flagged: only a flagged row takes longer than others, since it gets reasons.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fraudlib import features, paths
from fraudlib.calibration import Calibration
from fraudlib.errors import BundleError
from fraudlib.model import FraudModel, ModelConfig
from fraudlib.scoring import Scorer, limit_threads, raw_scores
from fraudlib.statistics import Statistics

Columns = dict[str, NDArray[Any]]

SIZES: Final = (1, 64, 256, 1024, 4096, 16384, 65536)
SECONDS: Final = 0.5  # for each figure, at least
POOL: Final = 2048
FLAGGED: Final = 0.02
AGREEMENT: Final = 1e-4  # largest difference between devices that counts as the same score
_DTYPES: Final = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_}


def made_up_trips(n: int, seed: int = 7) -> Columns:
    """Plausible metered trips, shape (n,) each."""
    rng = np.random.default_rng(seed)
    miles = np.round(rng.gamma(1.6, 1.9, n) + 0.3, 2)
    minutes = np.round(miles * 4.5 + rng.gamma(2.0, 1.5, n) + 1.0, 1)
    pickup = np.datetime64("2023-05-01T00:00:00", "us") + rng.integers(0, 30 * 86_400, n) * np.timedelta64(
        1_000_000, "us"
    )
    fare = np.round((3.0 + 0.7 * np.ceil(5 * miles * 0.85 + 0.4 * minutes)) / 0.1) * 0.1
    tip = np.where(rng.random(n) < 0.5, np.round(0.2 * fare, 2), 0.0)
    columns = {
        "pickup_datetime": pickup,
        "dropoff_datetime": pickup + (minutes * 60e6).astype("timedelta64[us]"),
        "vendor_id": np.full(n, 2.0),
        "rate_code_id": np.ones(n),
        "pickup_location_id": rng.choice([7.0, 41.0, 42.0, 74.0, 75.0, 95.0, 166.0], n),
        "dropoff_location_id": rng.choice([7.0, 41.0, 42.0, 74.0, 75.0, 236.0, 263.0], n),
        "passenger_count": np.ones(n),
        "trip_distance": miles,
        "fare_amount": fare,
        "extra": np.zeros(n),
        "mta_tax": np.full(n, 0.5),
        "tip_amount": tip,
        "tolls_amount": np.zeros(n),
        "improvement_surcharge": np.ones(n),
        "congestion_surcharge": np.zeros(n),
        "total_amount": np.round(fare + tip + 1.5, 2),
        "payment_type": np.where(tip > 0, 1.0, 2.0),
        "trip_type": np.ones(n),
        "service": np.zeros(n),
    }
    return columns


def load_trips(scorer: Scorer, n: int) -> Columns:
    """Made-up trips, shape (n,) each, of which the scorer flags FLAGGED."""
    pool = made_up_trips(POOL)
    flagged = scorer.score(pool).is_flagged
    honest, odd = np.flatnonzero(~flagged), np.flatnonzero(flagged)
    rng = np.random.default_rng(0)
    rows = rng.choice(honest if len(honest) else odd, n)
    if len(odd):
        rows = np.where(rng.random(n) < FLAGGED, rng.choice(odd, n), rows)
    return {name: column[rows] for name, column in pool.items()}


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file: eight bytes of length, a JSON header, the raw numbers."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            array = np.frombuffer(data[start:stop], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            out[name] = torch.from_numpy(array.copy())
    return out


def load(folder: Path, device: str) -> Scorer:
    """Scorer of a bundle without the checks that serving makes.

    Raises
    ------
    BundleError
        If a part is missing or of another version.
    """
    try:
        parts = {
            name: json.loads((folder / f"{name}.json").read_bytes()) for name in ("model", "statistics", "calibration")
        }
        threshold = float(json.loads((folder / "threshold.json").read_bytes())["threshold"])
        model = FraudModel(ModelConfig(**parts["model"]))
        model.load_state_dict(_weights(folder / "model.safetensors"))
        statistics, calibration = Statistics.from_json(parts["statistics"]), Calibration.from_json(parts["calibration"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as err:
        raise BundleError(
            f"{folder}: expected a bundle of this version, found otherwise ({err}); name another"
        ) from err
    return Scorer(folder.name, model, statistics, calibration, threshold, device)


def rows_per_second(rows: int, action: Callable[[], object], device: torch.device) -> float:
    """Rate of an action that handles `rows` rows, median of three runs after a warm-up."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        action()
    finish()
    rates = []
    for _ in range(3):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS / 3:
            action()
            finish()
            count += 1
        rates.append(count * rows / elapsed)
    return float(np.median(rates))


class Graph:
    """The model's pass over a batch of one size, captured once in a CUDA graph, with pinned staging on both sides."""

    def __init__(self, scorer: Scorer, rows: int) -> None:
        self._device = scorer.device
        shape = (rows, len(features.FEATURE_NAMES))
        self._staged = torch.empty(shape, dtype=torch.float32, pin_memory=True)
        self._input = torch.zeros(shape, dtype=torch.float32, device=self._device)
        stream = torch.cuda.Stream(self._device)
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):
                self._outputs(scorer)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._results = self._outputs(scorer)
        self._answers = [torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in self._results]

    def _outputs(self, scorer: Scorer) -> list[torch.Tensor]:
        logit, surprises = scorer.model(self._input)
        return [logit, surprises.surprise, surprises.expected]

    @torch.inference_mode()
    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Logits, surprises and expectations of features (rows, F)."""
        self._staged.numpy()[:] = x
        self._input.copy_(self._staged, non_blocking=True)
        self._graph.replay()
        for answer, result in zip(self._answers, self._results, strict=True):
            answer.copy_(result, non_blocking=True)
        torch.cuda.synchronize(self._device)
        return [answer.numpy() for answer in self._answers]


def measure(folder: Path, device: str, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Rates on one device, rows/s by batch size: features alone, model alone, both with calibration and reasons."""
    scorer = load(folder, device)
    table: list[dict[str, Any]] = []
    for rows in sizes:
        columns = load_trips(scorer, rows)
        build = partial(features.by_feature, columns, scorer.statistics)
        x = build()
        row = {
            "rows": rows,
            "features": rows_per_second(rows, build, torch.device("cpu")),
            "model": rows_per_second(rows, partial(scorer.raw, x), scorer.device),
            "score": rows_per_second(rows, partial(scorer.score, columns), scorer.device),
            "flagged_share": float(np.mean(scorer.score(columns).is_flagged)),
        }
        if scorer.device.type == "cuda":
            row |= _graphed(scorer, np.ascontiguousarray(x.T))
        table.append(row)
    name = torch.cuda.get_device_name(scorer.device) if scorer.device.type == "cuda" else platform.processor() or "cpu"
    return {"device": str(scorer.device), "name": name, "threads": torch.get_num_threads(), "table": table}


def _graphed(scorer: Scorer, x: NDArray[np.float32]) -> dict[str, Any]:
    """Rate of the model in a CUDA graph, and its largest difference to the plain pass; or why it cannot be captured."""
    try:
        graph = Graph(scorer, len(x))
    except RuntimeError as err:
        return {"model_cuda_graph": None, "graph_error": str(err).splitlines()[0]}
    plain = raw_scores(scorer.model, x, scorer.device).logit
    worst = float(np.abs(graph(x)[0][:, : plain.shape[1]] - plain).max())
    rate = rows_per_second(len(x), partial(graph, x), scorer.device)
    return {"model_cuda_graph": rate, "graph_difference": worst}


def agreement(folder: Path, device: str, rows: int = 20_000) -> dict[str, Any]:
    """Largest difference of the scores between a device and the CPU, and whether that is within AGREEMENT."""
    columns = load_trips(load(folder, "cpu"), rows)
    here, there = (load(folder, name).score(columns) for name in ("cpu", device))
    worst = float(np.abs(here.anomaly_score - there.anomaly_score).max())
    flips = int((here.is_flagged != there.is_flagged).sum())
    return {"rows": rows, "largest_difference": worst, "within": worst <= AGREEMENT, "verdicts_that_differ": flips}


def report(folder: Path, threads: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Everything that the devices of this machine allow."""
    out: dict[str, Any] = {
        "numpy_threads_are_limited": limit_threads(threads),
        "bundle_id": folder.name,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "devices": [measure(folder, "cpu", sizes)],
        "agreement": None,
    }
    if torch.cuda.is_available():
        out["devices"].append(measure(folder, "cuda:0", sizes))
        out["agreement"] = agreement(folder, "cuda:0")
    return out


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?", help="folder of a bundle; the current one by default")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and numpy on the CPU")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows in a batch")
    options = parser.parse_args()
    artifacts = paths.root() / "artifacts"
    folder = options.bundle or artifacts / (artifacts / paths.CURRENT).read_text().strip()
    print(json.dumps(report(folder, options.threads, options.sizes)))


if __name__ == "__main__":
    main()
