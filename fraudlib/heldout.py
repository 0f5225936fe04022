"""Families of fraud left out of the teaching: how much of a fraud is found that the head was never shown."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save

from fraudlib import calibration, features, fraud, manifest, scoring, training
from fraudlib.errors import DataError
from fraudlib.evaluation import Array, Columns, Interval, Ranking, wilson
from fraudlib.model import READINGS, FraudModel
from fraudlib.statistics import Statistics
from fraudlib.trial import Trial

UNLISTED: Final = fraud.UNLISTED  # kinds that are always left out
RATE: Final = 0.01  # false positive rate at which families are compared


def taught_without(family: str) -> tuple[str, ...]:
    """Taught kinds that are not of the family."""
    return tuple(name for name in training.TAUGHT if fraud.KINDS[name].family != family)


# A family of which nothing is taught cannot be left out.
FAMILIES: Final = tuple(name for name in fraud.FAMILIES if len(taught_without(name)) < len(training.TAUGHT))


def teach(
    model: FraudModel,
    columns: Columns,
    valid_columns: Columns,
    statistics: Statistics,
    config: training.TrainingConfig,
    family: str,
) -> FraudModel:
    """The same autoencoder with a new head that is shown every taught kind but those of one family.

    Parameters
    ----------
    model : trained; not changed. columns, valid_columns : trips of the training and validation splits, (n,) each.
    config : `head_rounds` and `head_epochs` may be fewer than the real head had: recall is then a lower bound.
    """
    training.seed_everything(config.seed)
    fresh = FraudModel(model.config)
    fresh.autoencoder.load_state_dict(model.autoencoder.state_dict())
    training.fit_head(
        fresh, columns, valid_columns, statistics, config, training.Curves(), taught_without(family), progress=False
    )
    return fresh.eval()


def teach_all(
    model: FraudModel,
    columns: Columns,
    valid_columns: Columns,
    statistics: Statistics,
    config: training.TrainingConfig,
    rounds: int,
    epochs: int,
    most_rows: int,
) -> dict[str, FraudModel]:
    """`teach` for each family, cheaply; none where there are no rounds.

    Parameters
    ----------
    config : of the real head. rounds, epochs : as its `head_rounds` and `head_epochs`, instead of these.
    most_rows : training trips taken, drawn at random.
    """
    if rounds < 1:
        return {}
    rng = np.random.default_rng(config.seed)
    n, m = features.row_count(columns), features.row_count(valid_columns)
    some = features.take(columns, np.sort(rng.choice(n, min(n, most_rows), replace=False)))
    check = features.take(valid_columns, np.arange(min(m, 2000)))  # only a learning curve that nobody looks at
    config = replace(config, head_rounds=rounds, head_epochs=epochs)
    return {family: teach(model, some, check, statistics, config, family) for family in FAMILIES}


def write(path: Path, models: Mapping[str, FraudModel]) -> None:
    """Write the heads of the models, atomically; the autoencoder is that of the run."""
    heads = {f"{name}/{key}": v.contiguous() for name, m in models.items() for key, v in m.head.state_dict().items()}
    manifest.write_atomic(path, save(heads))


def read(path: Path, model: FraudModel) -> dict[str, FraudModel]:
    """Models that `write` wrote the heads of, family by family.

    Raises
    ------
    DataError
        If the file is missing or does not fit the model.
    """
    try:
        heads = load(path.read_bytes())
        out = {}
        there = {name.partition("/")[0] for name in heads}
        for family in (name for name in FAMILIES if name in there):
            out[family] = FraudModel(model.config)
            out[family].autoencoder.load_state_dict(model.autoencoder.state_dict())
            own = {k.partition("/")[2]: v for k, v in heads.items() if k.startswith(f"{family}/")}
            out[family].head.load_state_dict(own)
            out[family].eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as err:
        raise DataError(f"{path}: expected the heads that 02 writes, found {err}; run the notebooks again") from err
    return out


def measure(
    models: Mapping[str, FraudModel],
    scorer: scoring.Scorer,
    valid: Columns,
    test: Columns,
    planted: Trial,
    honest_score: Array,
    fraud_score: Array,
) -> dict[str, Any]:
    """Recall of each family at `RATE` by the model that never saw it, beside the full model's; JSON-ready.

    Parameters
    ----------
    models : family -> model taught without it. scorer : the full model. valid : calibrates each.
    test : honest trips, (n,) each. planted : frauds. honest_score, fraud_score : the full model's, (n,) and (m,).
    """
    families: dict[str, Any] = {}
    for family, model in models.items():
        mine = np.flatnonzero(np.isin(planted.kind, [k for k in training.TAUGHT if fraud.KINDS[k].family == family]))
        raw = scoring.raw_scores(model, features.build(valid, scorer.statistics))
        fitted = calibration.fit(raw.logit, raw.surprise, READINGS)
        blind = scoring.Scorer(family, model, scorer.statistics, fitted, np.inf)
        honest, found = (blind.score(part).anomaly_score for part in (test, features.take(planted.columns, mine)))
        flags, known = flagged_at(honest, found), flagged_at(honest_score, fraud_score[mine])
        kind = planted.kind[mine]
        families[family] = {
            "recall": wilson(int(flags.sum()), len(flags)).to_json(),
            "recall_taught": wilson(int(known.sum()), len(known)).to_json(),
            "by_kind": {k: wilson(int(flags[kind == k].sum()), int((kind == k).sum())).to_json() for k in _kinds(kind)},
        }
    if not families:
        return {"false_positive_rate": RATE, "families": {}}
    means = {f"mean_{name}": _mean(families, name) for name in ("recall", "recall_taught")}
    return {"false_positive_rate": RATE, "families": families, **means}


def flagged_at(honest: Array, found: Array, rate: float = RATE) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which frauds score above what this share of honest trips exceeds, (m,)."""
    label = np.repeat([False, True], [len(honest), len(found)])
    curve = Ranking(label, np.append(honest, found)).curve()
    i = curve.within(rate)
    return found >= curve.score[i] if i >= 0 else np.zeros(len(found), dtype=bool)


def _kinds(kind: np.ndarray[Any, np.dtype[np.str_]]) -> list[str]:
    return [name for name in fraud.KINDS if np.any(kind == name)]


def _mean(families: Mapping[str, Any], name: str) -> dict[str, float]:
    """Mean over families with its 95 % interval; the families' errors are independent of each other."""
    parts = [family[name] for family in families.values()]
    value = float(np.mean([p["value"] for p in parts]))
    half = float(np.sqrt(np.sum([((p["high"] - p["low"]) / 2) ** 2 for p in parts])) / len(parts))
    return Interval(value, max(value - half, 0.0), min(value + half, 1.0)).to_json()
