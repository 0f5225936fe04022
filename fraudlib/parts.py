"""The parts of a run: what notebooks 01 to 04 write for each other, saved and loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.torch import load as load_weights
from safetensors.torch import save as save_weights

from fraudlib import manifest, trips
from fraudlib.calibration import Calibration
from fraudlib.errors import DataError
from fraudlib.model import FraudModel, ModelConfig
from fraudlib.paths import RunPaths
from fraudlib.scoring import Scorer, limit_threads
from fraudlib.statistics import Statistics

Columns = dict[str, NDArray[Any]]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; NaN and infinity are refused."""
    manifest.write_atomic(path, json.dumps(value, indent=1, allow_nan=False).encode())


def read_json(path: Path) -> dict[str, Any]:
    """JSON object that an earlier notebook wrote.

    Raises
    ------
    DataError
        If it is not there or no JSON object.
    """
    try:
        content = json.loads(_read(path))
    except ValueError as err:
        raise DataError(f"{path}: expected JSON of an earlier notebook, found {err}; run the notebooks again") from err
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found a {type(content).__name__}; run the notebooks again")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise DataError(
            f"{path}: expected what an earlier notebook writes, found nothing; run 01 to 04 in order"
        ) from err


def save_trips(run: RunPaths, split: str, table: pa.Table) -> None:
    """Write the trips of one split."""
    target = run.trips(split)
    aside = target.with_name(f".{target.name}")
    pq.write_table(table, aside, compression="zstd")
    aside.replace(target)


def load_columns(run: RunPaths, split: str) -> Columns:
    """Trips of one split as columns of shape (n,), as features and scoring take them."""
    return trips.to_columns(trips.read(run.trips(split)))


def save_model(run: RunPaths, model: FraudModel) -> None:
    """Write weights and sizes."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    manifest.write_atomic(run.model, save_weights(weights))
    write_json(run.model_config, model.to_json())


def load_model(run: RunPaths) -> FraudModel:
    """The model that notebook 02 wrote, ready to score."""
    model = FraudModel(ModelConfig(**read_json(run.model_config)))
    model.load_state_dict(load_weights(_read(run.model)))
    return model.eval()


def load_statistics(run: RunPaths) -> Statistics:
    """The training statistics that notebook 01 wrote."""
    return Statistics.from_json(read_json(run.statistics))


def load_scorer(run: RunPaths) -> Scorer:
    """Scorer of the parts that notebooks 01 to 03 wrote, before they are sealed."""
    calibration = Calibration.from_json(read_json(run.calibration))
    threshold = float(read_json(run.threshold)["threshold"])
    return Scorer(run.folder.name, load_model(run), load_statistics(run), calibration, threshold)


def origin(data: Mapping[str, Any]) -> str:
    """What the trips are, for every figure's title.

    Examples
    --------
    >>> origin({"simulated": True}), origin({"simulated": False})
    ('simulated sample', 'real TLC months')
    """
    return "simulated sample" if data["simulated"] else "real TLC months"


def jsonable(value: Any) -> Any:
    """The same value with NaN and infinity as null and numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def use_one_thread() -> None:
    """Let PyTorch and numpy compute on one thread.

    On layers this small waiting threads cost more than they add, up to 25 times where other work shares the cores,
    and on one thread sums come out alike whatever the number of cores.
    """
    limit_threads(1)


def settings_of(run: RunPaths) -> dict[str, Any]:
    """Parameters that notebooks 01 to 03 wrote down, for the manifest."""
    data = read_json(run.data)
    periods = {f"{split}_period": part["period"] for split, part in data["splits"].items()}
    settings = {"service": data["service"], **periods, **data["parameters"]}
    return {**settings, **read_json(run.training)["parameters"], **read_json(run.threshold)["parameters"]}
