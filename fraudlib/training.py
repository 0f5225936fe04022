"""Training: the autoencoder on honest trips as they come, then the head on planted fraud of many kinds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from fraudlib import features, fraud
from fraudlib.features import CODE_FIELDS, FIELDS
from fraudlib.model import N_AMOUNTS, N_LOGITS, PREDICTED, FraudModel, Head, MaskedAutoencoder, ModelConfig
from fraudlib.statistics import Statistics, duration_minutes

Columns = Mapping[str, NDArray[np.generic]]
# Kinds that one record alone does not show would teach the head noise.
TAUGHT = tuple(name for name in fraud.LISTED if name != "resubmitted")

# Kinds that keep every identity of the record are planted twice as often: what is obvious needs fewer examples.
HARD_TIMES = 2
BLAME_WEIGHT = 0.3  # naming the field must not cost finding the fraud
# Corruption counts little for the first logit, which is to be sharp on known frauds; the second takes it in full.
CORRUPTED_WEIGHT = 0.2
# A trip with one amount made worse is to be more suspicious than before, by this many units of the second logit.
WORSE_WEIGHT, WORSE_MARGIN = 1.0, 2.0
WORSE_SHARE = 0.2  # of the training trips, each round
PARTIAL_SHARE = 0.12  # of the rows that teach lose fields: whoever sends a trip may leave out all but three
_COLUMNS_OF = {
    "zones": ("pickup_location_id", "dropoff_location_id"),
    "pickup_datetime": ("pickup_datetime", "dropoff_datetime"),
}
SHORT_REQUEST = ("trip_distance", "duration_minutes", "fare_amount")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; epochs are passes over the training split."""

    epochs: int = 20
    head_rounds: int = 6
    head_epochs: int = 8
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 7


@dataclass
class Curves:
    """Learning curves: mean loss per epoch, training and validation."""

    autoencoder: list[tuple[float, float]] = field(default_factory=list)
    head: list[tuple[float, float]] = field(default_factory=list)


def seed_everything(seed: int) -> None:
    """One seed for numpy and torch, deterministic kernels, and one thread.

    Layers this small wait longer for a second thread than it helps, and sums come out alike whatever the machine.
    """
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def fit_scaler(model: MaskedAutoencoder, x: NDArray[np.float32]) -> None:
    """Mean and spread of each feature from the training features, NaN left out."""
    mean = np.nanmean(np.where(np.isnan(x).all(0), 0.0, x), axis=0)
    low, high = np.nanquantile(np.where(np.isnan(x).all(0), 0.0, x), [0.001, 0.999], axis=0)
    scale = np.nanstd(np.clip(np.where(np.isnan(x).all(0), 0.0, x), low, high), axis=0)
    model.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
    model.scale.copy_(torch.from_numpy(np.where(scale < 1e-3, 1.0, scale).astype(np.float32)))


def _hide(model: MaskedAutoencoder, n: int, generator: torch.Generator) -> Tensor:
    """Fields to hide, (n, fields): those of one view each, now and then more, sometimes nearly all."""
    hide = model.view_hides[torch.randint(0, len(model.view_hides), (n,), generator=generator)]
    more = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1, 0.3])[torch.randint(0, 6, (n, 1), generator=generator)]
    hide = torch.maximum(hide, (torch.rand(n, len(FIELDS), generator=generator) < more).float())
    sparse = torch.rand(n, generator=generator) < 0.06
    keep = torch.tensor([f in SHORT_REQUEST for f in FIELDS])
    hide[sparse] = torch.maximum(hide[sparse], (~keep).float())
    return hide


def _loss(model: MaskedAutoencoder, batch: Tensor, hide: Tensor) -> Tensor:
    x, observed = model.standardise(batch)
    last = model(x, observed, hide)
    asked = hide * observed
    out = model.amounts(last).view(len(batch), N_AMOUNTS, 2)
    log_spread = out[..., 1].clamp(-4.0, 2.0)
    z = (x[:, :N_AMOUNTS] - out[..., 0]).abs() * torch.exp(-log_spread)
    # Laplace: one far value pulls no harder than any other. A tail that stops pulling altogether, and a second fit
    # without the strangest half per cent, were measured and changed nothing beyond the spread between seeds.
    loss = ((z + log_spread) * asked[:, :N_AMOUNTS]).sum()
    for name in CODE_FIELDS:
        g = FIELDS.index(name)
        code = model.code_class(batch, name)
        entropy = nn.functional.cross_entropy(model.codes[name](last), code, reduction="none")
        loss = loss + (entropy * asked[:, g]).sum()
    loss = loss / asked[:, : len(PREDICTED)].sum().clamp(min=1.0)
    return torch.as_tensor(loss)


def _epochs(
    parameters: Sequence[nn.Parameter],
    n: int,
    epochs: int,
    config: TrainingConfig,
    generator: torch.Generator,
    step: Callable[[Tensor], Tensor],
    describe: str,
    after: Callable[[float], None],
    progress: bool,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = math.ceil(n / config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=epochs * batches + 1)
    bar = tqdm(range(epochs), desc=describe, unit="epoch", disable=not progress)
    for _ in bar:
        order = torch.randperm(n, generator=generator)
        total = 0.0
        for rows in order.split(config.batch_size):
            loss = step(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        after(total / n)
        bar.set_postfix(loss=f"{total / n:.3f}")


def fit_autoencoder(
    model: FraudModel,
    train: NDArray[np.float32],
    valid: NDArray[np.float32],
    config: TrainingConfig,
    curves: Curves,
    progress: bool = True,
) -> None:
    """Fit the scaler and the autoencoder on the features of the training split.

    Parameters
    ----------
    train, valid : arrays of shape (n, F), float32, NaN where missing.
    """
    net = model.autoencoder
    fit_scaler(net, train)
    generator = torch.Generator().manual_seed(config.seed)
    data, check = torch.from_numpy(train), torch.from_numpy(valid[:20_000])
    check_hide = _hide(net, len(check), torch.Generator().manual_seed(1))

    def step(rows: Tensor) -> Tensor:
        return _loss(net, data[rows], _hide(net, len(rows), generator))

    def after(loss: float) -> None:
        with torch.no_grad():
            curves.autoencoder.append((loss, float(_loss(net, check, check_hide))))

    _epochs(list(net.parameters()), len(data), config.epochs, config, generator, step, "autoencoder", after, progress)


def teach_set(
    columns: Columns,
    statistics: Statistics,
    seed: int,
    kinds: Sequence[str] = TAUGHT,
    planted_share: float = 0.3,
    corrupted_share: float = 0.4,
    honest_share: float = 0.5,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (n, F) and labels (n, 2 + P) of one round: planted fraud, anything changed, each predicted field.

    A round is some of the honest trips, and copies with planted fraud and with corruption. Some rows lose fields,
    as short requests do; a fraud that lost what it changed is left out.
    """
    kinds = [k for k in kinds for _ in range(1 if fraud.KINDS[k].easy else HARD_TIMES)]
    planted = fraud.plant(columns, planted_share, seed, kinds)
    corrupted = fraud.corrupt(columns, corrupted_share, seed + 1)
    rng = np.random.default_rng(seed + 2)
    honest = np.flatnonzero(rng.random(features.row_count(columns)) < honest_share)
    parts = [features.take(columns, honest)] + [features.take(p.columns, p.label) for p in (planted, corrupted)]
    n = len(honest)
    everything = features.concat(parts)
    blame = np.stack([np.concatenate([p.changed[f][p.label] for p in (planted, corrupted)]) for f in PREDICTED], axis=1)
    label = np.zeros((n + len(blame), N_LOGITS + len(PREDICTED)), dtype=np.float32)
    label[n : n + int(planted.label.sum()), 0] = 1
    label[n:, 1] = 1
    label[n:, N_LOGITS:] = blame
    x = features.build(everything, statistics)
    part = np.flatnonzero(rng.random(len(label)) < PARTIAL_SHARE)
    kept, there = _partial(features.take(everything, part), rng)
    x[part] = features.build(kept, statistics)
    use = np.ones(len(label), dtype=bool)
    use[part] = (part < n) | ((label[part, N_LOGITS:] > 0) & there).any(axis=1)
    return x[use], label[use]


def _partial(columns: Columns, rng: np.random.Generator) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.bool_]]:
    """Trips that lost some of their fields, or as short requests do all but three; which predicted fields are left."""
    n = features.row_count(columns)
    minutes = duration_minutes(columns, n)
    lost = rng.random((n, len(FIELDS))) < np.where(rng.random(n) < 0.5, 1.0, rng.random(n))[:, None]
    lost[:, [FIELDS.index(field) for field in SHORT_REQUEST]] = False
    out = {name: values.copy() for name, values in columns.items()}
    out["duration_minutes"] = np.asarray(minutes).copy()
    for lacking, gone in zip(FIELDS, lost.T, strict=True):
        for name in out.keys() & set(_COLUMNS_OF.get(lacking, (lacking,))):
            out[name][gone] = np.datetime64("NaT") if out[name].dtype.kind == "M" else np.nan
    return out, ~lost[:, [FIELDS.index(field) for field in PREDICTED]]


def worse_pairs(
    columns: Columns, statistics: Statistics, seed: int, kinds: Sequence[str] = TAUGHT
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features, (m, F) each, of honest, planted and corrupted trips, and of the same with one amount made worse."""
    some = np.random.default_rng(seed).random(features.row_count(columns)) < WORSE_SHARE
    planted = fraud.plant(features.take(columns, some), 0.3, seed, kinds).columns
    before = fraud.corrupt(planted, 0.3, seed + 1).columns
    return features.build(before, statistics), features.build(fraud.worsen(before, seed + 2), statistics)


@torch.no_grad()
def head_inputs(model: FraudModel, x: NDArray[np.float32], chunk: int = 512) -> Tensor:
    """What the head sees of features (n, F), in chunks."""
    return torch.cat([Head.inputs(model.autoencoder.surprises(part)) for part in torch.from_numpy(x).split(chunk)])


def _seen(model: FraudModel, taught: tuple[NDArray[np.float32], NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    x, label = taught
    return head_inputs(model, x), torch.from_numpy(label)


def _head_loss(out: Tensor, label: Tensor) -> Tensor:
    """Loss of logits (B, 2 + P) against labels (B, 2 + P)."""
    bce = nn.functional.binary_cross_entropy_with_logits
    corrupted = label[:, 1] - label[:, 0]
    known = bce(out[:, 0], label[:, 1], weight=1.0 - (1.0 - CORRUPTED_WEIGHT) * corrupted)
    anything = bce(out[:, 1], label[:, 1])
    blame = bce(out[:, N_LOGITS:], label[:, N_LOGITS:], reduction="none").mean(dim=1)
    return known + anything + BLAME_WEIGHT * (blame * label[:, 1]).mean()


def fit_head(
    model: FraudModel,
    columns: Columns,
    valid_columns: Columns,
    statistics: Statistics,
    config: TrainingConfig,
    curves: Curves,
    kinds: Sequence[str] = TAUGHT,
    progress: bool = True,
) -> None:
    """Teach the head: each round plants anew into the training trips.

    Parameters
    ----------
    columns, valid_columns : trips of the training and validation splits, shape (n,) each.
    kinds : kinds of fraud to teach; families are left out to measure what is then still seen.
    """
    model.autoencoder.eval()
    sets, pairs = [], []
    for r in tqdm(range(config.head_rounds), desc="planting", unit="round", disable=not progress):
        seed = config.seed * 1000 + 10 * r
        sets.append(_seen(model, teach_set(columns, statistics, seed, kinds)))
        pairs.append(tuple(head_inputs(model, x) for x in worse_pairs(columns, statistics, seed + 5, kinds)))
    inputs, labels = (torch.cat(part) for part in zip(*sets, strict=True))
    before, worse = (torch.cat(part) for part in zip(*pairs, strict=True))
    del sets, pairs  # what the rounds took is as large again
    generator = torch.Generator().manual_seed(config.seed)
    check, check_labels = _seen(model, teach_set(valid_columns, statistics, config.seed * 1000 + 999, kinds))

    def step(rows: Tensor) -> Tensor:
        some = torch.randint(0, len(before), (max(len(rows) // 4, 1),), generator=generator)
        gap = model.head(before[some])[:, 1] - model.head(worse[some])[:, 1]
        ordered = nn.functional.softplus(gap + WORSE_MARGIN).mean()
        return _head_loss(model.head(inputs[rows]), labels[rows]) + WORSE_WEIGHT * ordered

    def after(loss: float) -> None:
        with torch.no_grad():
            curves.head.append((loss, float(_head_loss(model.head(check), check_labels))))

    _epochs(
        list(model.head.parameters()), len(inputs), config.head_epochs, config, generator, step, "head", after, progress
    )


def fit(
    columns: Columns,
    valid_columns: Columns,
    statistics: Statistics,
    model_config: ModelConfig | None = None,
    config: TrainingConfig | None = None,
    progress: bool = True,
) -> tuple[FraudModel, Curves]:
    """Autoencoder and head, from trips of the training and validation splits."""
    config = config or TrainingConfig()
    seed_everything(config.seed)
    model, curves = FraudModel(model_config), Curves()
    train, valid = features.build(columns, statistics), features.build(valid_columns, statistics)
    fit_autoencoder(model, train, valid, config, curves, progress)
    fit_head(model, columns, valid_columns, statistics, config, curves, progress=progress)
    return model.eval(), curves
