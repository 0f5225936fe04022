"""Bundles: seal a run's parts into a verified folder, and load one back into a scorer."""

import fcntl
import json
import math
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from fraudlib import paths, signature
from fraudlib.calibration import Calibration
from fraudlib.errors import BundleError, FraudError
from fraudlib.features import FEATURE_NAMES
from fraudlib.manifest import FORMAT_VERSION, FileEntry, Manifest, fsync_folder, now, sha256, verify_files
from fraudlib.model import FraudModel, ModelConfig
from fraudlib.paths import MANIFEST
from fraudlib.scoring import Scorer
from fraudlib.statistics import Statistics

Columns = Mapping[str, NDArray[np.generic]]

WEIGHTS, MODEL, STATISTICS, CALIBRATION = "model.safetensors", "model.json", "statistics.json", "calibration.json"
THRESHOLD, GOLDEN, REFERENCE = "threshold.json", "golden.json", "reference.json"
# Golden rows are rescored at load: other processors round differently, other weights or features differ by far more.
GOLDEN_TOLERANCE: Final = 1e-3
LIBRARIES: Final = ("numpy", "pandas", "pyarrow", "safetensors", "scikit-learn", "torch")
REFERENCE_BINS: Final = 10


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its manifest, a scorer, and the reference histograms for drift."""

    manifest: Manifest
    scorer: Scorer
    reference: dict[str, Any]


def golden_columns(n: int = 48) -> dict[str, NDArray[np.generic]]:
    """Made-up trips that exercise every feature, every missing field included; the same on every machine."""
    rng = np.random.default_rng(20220101)

    def some(values: NDArray[np.float64], missing: float = 0.15) -> NDArray[np.float64]:
        return np.where(rng.random(n) < missing, np.nan, values)

    miles = np.round(rng.gamma(1.5, 2.0, n), 2)
    minutes = np.round(miles * 4 + rng.gamma(2.0, 2.0, n), 1)
    pickup = np.datetime64("2022-11-01T00:00:00", "us") + rng.integers(0, 90 * 86400, n).astype("timedelta64[s]")
    fare = np.round(3 + 3.5 * miles + 0.25 * minutes, 2)
    return {
        "pickup_datetime": np.where(rng.random(n) < 0.2, np.datetime64("NaT", "us"), pickup),
        "duration_minutes": minutes,
        "trip_distance": miles,
        "fare_amount": fare * rng.choice([1.0, 2.0, 10.0], n, p=[0.8, 0.1, 0.1]),
        "extra": some(rng.choice([0.0, 1.0, 2.5], n)),
        "mta_tax": some(rng.choice([0.0, 0.5], n)),
        "tip_amount": some(np.round(rng.gamma(1.0, 3.0, n), 2)),
        "tolls_amount": some(rng.choice([0.0, 6.55], n, p=[0.8, 0.2])),
        "improvement_surcharge": some(rng.choice([0.3, 1.0], n)),
        "congestion_surcharge": some(rng.choice([0.0, 2.75], n)),
        "total_amount": some(np.round(fare + 5, 2)),
        "rate_code_id": some(rng.choice([1.0, 2.0, 5.0], n, p=[0.8, 0.1, 0.1])),
        "payment_type": some(rng.choice([1.0, 2.0], n)),
        "passenger_count": some(rng.choice([0.0, 1.0, 2.0], n)),
        "trip_type": some(rng.choice([1.0, 2.0], n)),
        "vendor_id": some(rng.choice([1.0, 2.0], n)),
        "pickup_location_id": some(rng.integers(1, 266, n).astype(np.float64)),
        "dropoff_location_id": some(rng.integers(1, 266, n).astype(np.float64)),
        "service": some(rng.choice([0.0, 1.0], n)),
    }


def _columns_to_json(columns: Columns) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if values.dtype.kind == "M":
            out[name] = [None if np.isnat(v) else str(v) for v in values]
        else:
            out[name] = [None if math.isnan(v) else v for v in values.tolist()]
    return out


def _columns_from_json(data: Mapping[str, list[Any]]) -> dict[str, NDArray[np.generic]]:
    times = ("pickup_datetime", "dropoff_datetime")
    return {
        name: np.array(["NaT" if v is None else v for v in values], dtype="datetime64[us]")
        if name in times
        else np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        for name, values in data.items()
    }


def reference_histograms(x: NDArray[np.float32], anomaly_score: NDArray[np.float64]) -> dict[str, Any]:
    """Shares of training features and validation scores in bins, to measure drift against.

    Parameters
    ----------
    x : training features, (n, F). anomaly_score : validation scores, (m,).
    """
    out: dict[str, Any] = {}
    columns = {
        **{name: x[:, i].astype(np.float64) for i, name in enumerate(FEATURE_NAMES)},
        "anomaly_score": anomaly_score,
    }
    for name, values in columns.items():
        known = values[~np.isnan(values)]
        if len(known) == 0:
            continue
        edges = np.unique(np.quantile(known, np.linspace(0, 1, REFERENCE_BINS + 1)[1:-1]).round(6))
        counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 1)
        out[name] = {
            "edges": edges.tolist(),
            "shares": (counts / len(values)).round(6).tolist(),
            "missing": round(1 - len(known) / len(values), 6),
        }
    return out


def git_commit() -> str:
    """Commit of the code, with "+changes" where the tree differs; FRAUDLIB_GIT_COMMIT in an image, else "unknown"."""
    root = paths.root()
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "-C", root, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FRAUDLIB_GIT_COMMIT", "unknown")
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that make a bundle."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def new_bundle_id(run_id: str) -> str:
    """`<UTC>-<run>`: sorts by time."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    short = run_id.rsplit("-", 1)[-1][:12]
    return f"{stamp}-{short}"


def seal(
    artifacts: Path,
    run_id: str,
    model: FraudModel,
    statistics: Statistics,
    calibration: Calibration,
    threshold: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: Mapping[str, Any],
    parameters: Mapping[str, Any],
    reference: Mapping[str, Any],
) -> Path:
    """Write a bundle aside, sync it, load it back, and rename it into the artifacts folder. It is not live yet.

    Returns
    -------
    The sealed folder `artifacts/<bundle_id>`.

    Raises
    ------
    BundleError
        If what was written does not load back with the same scores; nothing is left behind.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    bundle_id = new_bundle_id(run_id)
    aside = artifacts / f".sealing-{uuid.uuid4().hex}"
    aside.mkdir()
    # Held until the folder is whole: one that nobody holds was left by a killed process and may be removed.
    held = os.open(aside, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        golden = golden_columns()
        scorer = Scorer(bundle_id, model, statistics, calibration, float(threshold["threshold"]))
        scores = scorer.score(golden).anomaly_score
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        files = {
            WEIGHTS: save_weights(weights),
            MODEL: _json(model.to_json()),
            STATISTICS: _json(statistics.to_json()),
            CALIBRATION: _json(calibration.to_json()),
            THRESHOLD: _json(dict(threshold)),
            GOLDEN: _json({"columns": _columns_to_json(golden), "anomaly_score": scores.tolist()}),
            REFERENCE: _json(dict(reference)),
        }
        for name, content in files.items():
            _write(aside / name, content)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            bundle_id=bundle_id,
            run_id=run_id,
            created_at=now(),
            git_commit=git_commit(),
            data=dict(data),
            parameters=dict(parameters),
            libraries=library_versions(),
            features=list(FEATURE_NAMES),
            threshold=dict(threshold),
            metrics=dict(metrics),
            files={n: FileEntry(sha256=sha256(aside / n), bytes=(aside / n).stat().st_size) for n in files},
        )
        _write(aside / MANIFEST, manifest.model_dump_json(indent=1).encode())
        fsync_folder(aside)
        load(aside)
        os.replace(aside, artifacts / bundle_id)
        fsync_folder(artifacts)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        os.close(held)
    return artifacts / bundle_id


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load(folder: Path, device: str = "cpu", verify_key: Path | None = None) -> Bundle:
    """Verify a bundle and load it: signature (where there is a key), hashes, the parts, then the golden rows.

    Raises
    ------
    BundleError
        If the signature is not the key's, any file is altered, the features are not this version's, or a golden row
        scores differently.
    """
    signature.check(folder, verify_key)
    manifest = verify_files(folder)
    if tuple(manifest.features) != FEATURE_NAMES:
        raise BundleError(
            f"{folder}: expected the {len(FEATURE_NAMES)} features of this version in order, "
            f"found {len(manifest.features)} that differ from position {_first_difference(manifest.features)}; retrain"
        )
    try:
        parts = {name: json.loads((folder / name).read_bytes()) for name in manifest.files if name.endswith(".json")}
        model = FraudModel(ModelConfig(**parts[MODEL]))
        model.load_state_dict(load_weights((folder / WEIGHTS).read_bytes()))
        if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
            raise BundleError(f"{folder / WEIGHTS}: expected finite weights, found NaN or infinity")
        statistics = Statistics.from_json(parts[STATISTICS])
        calibration = Calibration.from_json(parts[CALIBRATION])
        threshold, block = float(parts[THRESHOLD]["threshold"]), parts[THRESHOLD].get("block")
        block = None if block is None else float(block)
        scorer = Scorer(manifest.bundle_id, model, statistics, calibration, threshold, device, block)
        golden = _columns_from_json(parts[GOLDEN]["columns"])
        expected = np.asarray(parts[GOLDEN]["anomaly_score"], dtype=np.float64)
        reference = parts[REFERENCE]
    except BundleError:
        raise
    except (FraudError, KeyError, TypeError, ValueError, RuntimeError, OSError) as err:
        raise BundleError(f"{folder}: a part does not load: {err}") from err
    _check_golden(folder, scorer, golden, expected)
    return Bundle(manifest, scorer, reference)


def _first_difference(found: list[str]) -> int:
    pairs = zip(found, FEATURE_NAMES, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(FEATURE_NAMES)))


def _check_golden(folder: Path, scorer: Scorer, golden: Columns, expected: NDArray[np.float64]) -> None:
    found = scorer.score(golden).anomaly_score
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise BundleError(f"{folder / GOLDEN}: expected {expected.shape[0]} finite golden scores, found {found.shape}")
    worst = float(np.max(np.abs(found - expected), initial=0.0))
    if worst > GOLDEN_TOLERANCE:
        raise BundleError(
            f"{folder}: golden rows score up to {worst:.2g} away, expected under {GOLDEN_TOLERANCE}; "
            "weights, statistics and features are not of one run"
        )
