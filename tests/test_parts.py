"""Parts of a run: written whole, read back, and missed with a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fraudlib import parts, splits
from fraudlib.errors import DataError, ParameterError
from fraudlib.model import FraudModel, ModelConfig
from fraudlib.paths import RunPaths, root

SAMPLE = root() / "data" / "sample"


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    """Weights and sizes survive the way through the run's folder."""
    run, model = RunPaths(tmp_path), FraudModel(ModelConfig(width=16, latent_dim=8))
    parts.save_model(run, model)
    loaded = parts.load_model(run)
    assert loaded.config == model.config
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


@pytest.mark.parametrize(("content", "word"), [(None, "run 01 to 04"), ("{", "JSON"), ("[1]", "found a list")])
def test_a_missing_part_says_so(tmp_path: Path, content: str | None, word: str) -> None:
    """A file that is not there, cut off or of another shape is named with what to do."""
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=word):
        parts.read_json(path)


def test_not_a_number_is_written_as_null(tmp_path: Path) -> None:
    """JSON has no NaN: `jsonable` makes it null, and a NaN that slipped through is refused, leaving nothing."""
    value = {"a": float("nan"), "b": [np.float64(1.5), np.int64(2)], "c": {"d": np.bool_(True)}}
    parts.write_json(tmp_path / "ok.json", parts.jsonable(value))
    assert json.loads((tmp_path / "ok.json").read_text()) == {"a": None, "b": [1.5, 2], "c": {"d": True}}
    with pytest.raises(ValueError, match="JSON"):
        parts.write_json(tmp_path / "bad.json", value)
    assert not (tmp_path / "bad.json").exists()


def test_a_split_is_thinned_and_repeats() -> None:
    """At most so many rows are kept, in order, the same ones with the same seed; the label of simulation stays."""
    tables = [splits.load(SAMPLE, "green", "2023-05-01:2023-05-05", 500, seed) for seed in (7, 7, 8)]
    (one, found), (two, _), (other, _) = tables
    assert (one.num_rows, found > 500) == (500, True)
    assert one.equals(two)
    assert not one.equals(other)
    run_data = splits.describe(SAMPLE, "green", {"train": "2023-05-01:2023-05-05"})
    assert parts.origin(run_data) == "simulated sample"
    assert run_data["files"][0]["rows"] > found


def test_trips_of_a_split_come_back(tmp_path: Path) -> None:
    """What 01 writes is what 02 reads, row by row."""
    table, _ = splits.load(SAMPLE, "green", "2023-05-01", 10_000, 7)
    run = RunPaths(tmp_path)
    parts.save_trips(run, "train", table)
    columns = parts.load_columns(run, "train")
    np.testing.assert_array_equal(columns["fare_amount"], table.column("fare_amount").to_numpy())


@pytest.mark.parametrize(("period", "error"), [("2019-01", DataError), ("May 2023", ParameterError)])
def test_a_period_that_is_not_there(period: str, error: type[Exception]) -> None:
    """A missing month is listed with those that are there; a period that cannot be read is shown."""
    with pytest.raises(error, match=period):
        splits.load(SAMPLE, "green", period, 100, 7)
