"""The masked autoencoder of honest trips, and the head that weighs its surprises.

The autoencoder looks at a trip in several views: each hides some fields and predicts them from the rest, with a spread
of their own; how far an observed value lies outside is its surprise in that view. A small head, taught with planted
fraud and with corruption, weighs surprises, signed residuals and features.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fraudlib.errors import ShapeError
from fraudlib.features import AMOUNT_FIELDS, CODE_FIELDS, FEATURE_NAMES, FIELDS, hides

N_AMOUNTS = len(AMOUNT_FIELDS)
PREDICTED = (*AMOUNT_FIELDS, *CODE_FIELDS)
N_FEATURES = len(FEATURE_NAMES)


@dataclass(frozen=True)
class View:
    """One look at a trip: the fields that it hides, and those of them whose prediction is read."""

    name: str
    hidden: tuple[str, ...]
    read: tuple[str, ...]


_CODES = ("rate_code_id", "payment_type")
_SURCHARGES = ("extra", "mta_tax", "improvement_surcharge", "congestion_surcharge")
_EXTRAS = ("tip_amount", "tolls_amount", "total_amount")
# Fields that fraud changes together are also hidden together: an odd rate code would explain away the fare that came
# with it, and a fare the miles that it was made up for.
VIEWS = (
    View("alone", ("trip_distance",), ("trip_distance",)),
    View("alone", ("duration_minutes",), ("duration_minutes",)),
    View("alone", ("fare_amount",), ("fare_amount",)),
    View("bill", ("fare_amount", *_CODES), ("fare_amount", *_CODES)),
    View(
        "trip",
        ("trip_distance", "duration_minutes", "fare_amount", "rate_code_id"),
        ("trip_distance", "duration_minutes", "fare_amount"),
    ),
    View("surcharges", _SURCHARGES, _SURCHARGES),
    View("extras", _EXTRAS, _EXTRAS),
    View("codes", _CODES, _CODES),
)
# A reading is one field's prediction in one view: (position of the view, field). Amounts first, then code by code.
_READ = tuple(
    (v, field)
    for wanted in (AMOUNT_FIELDS, *((c,) for c in CODE_FIELDS))
    for v, view in enumerate(VIEWS)
    for field in view.read
    if field in wanted
)
READINGS = tuple(f"{field}/{VIEWS[v].name}" for v, field in _READ)
READING_FIELDS = tuple(PREDICTED.index(field) for _, field in _READ)
AMOUNT_READINGS = sum(field in AMOUNT_FIELDS for _, field in _READ)
N_LOGITS = 2  # of a fraud like those that were taught, and of anything changed
# The feature whose absence says that the field is missing.
_INDICATOR = {
    **dict(zip(AMOUNT_FIELDS, FEATURE_NAMES, strict=False)),
    "total_amount": "total_log",
    "rate_code_id": "rate_code_1",
    "payment_type": "payment_1",
    "pickup_datetime": "hour_sin",
    "zones": "same_zone",
    "vendor_id": "vendor_1",
    "trip_type": "dispatch_trip",
    "passenger_count": "passengers_log",
    "service": "yellow",
}
# Least spread of a prediction, in standard deviations of the target: below it, cents would look like fraud.
MIN_LOG_SPREAD, MAX_LOG_SPREAD = -4.0, 2.0
MAX_LOGIT = 40.0  # of a code; its exponential stays finite, and nothing is surer than that
CLIP = 12.0  # standardised features; beyond it a value is simply extreme


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network: widths in units."""

    width: int = 48
    latent_dim: int = 24
    head_width: int = 128
    head_depth: int = 2


class MaskedAutoencoder(nn.Module):
    """Predicts hidden fields from visible ones.

    Parameters
    ----------
    config : sizes; `latent_dim` is the bottleneck.
    """

    mean: Tensor
    scale: Tensor
    hidden_by: Tensor
    view_hides: Tensor
    indicator: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N_FEATURES))
        self.register_buffer("scale", torch.ones(N_FEATURES))
        hidden_by = torch.from_numpy(np.stack([hides(field) for field in FIELDS])).float()
        self.register_buffer("hidden_by", hidden_by, persistent=False)  # (fields, F)
        indicator = torch.tensor([FEATURE_NAMES.index(_INDICATOR[field]) for field in FIELDS])
        self.register_buffer("indicator", indicator, persistent=False)  # (fields,)
        hide = torch.zeros(len(VIEWS), len(FIELDS))
        for v, view in enumerate(VIEWS):
            hide[v, [FIELDS.index(field) for field in view.hidden]] = 1.0
        self.register_buffer("view_hides", hide, persistent=False)  # (views, fields)
        self._side_by_side: SideBySide | None = None
        self.inputs = nn.Linear(N_FEATURES + len(FIELDS), config.width)
        self.encoder = nn.Linear(config.width, config.latent_dim)
        self.decoder = nn.Linear(config.latent_dim, config.width)
        self.amounts = nn.Linear(config.width, 2 * N_AMOUNTS)
        self.codes = nn.ModuleDict({name: nn.Linear(config.width, len(c) + 1) for name, c in CODE_FIELDS.items()})

    def standardise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised features with 0 where missing, (B, F), and which fields are there, (B, fields)."""
        if features.ndim != 2 or features.shape[1] != N_FEATURES:
            raise ShapeError(f"features: expected (n, {N_FEATURES}), found {tuple(features.shape)}")
        x = ((features - self.mean) / self.scale).clamp(-CLIP, CLIP)
        missing = torch.isnan(x)
        return torch.nan_to_num(x, nan=0.0), (~missing.index_select(1, self.indicator)).float()

    def decode(self, hidden: Tensor) -> Tensor:
        """First layer's sums to the layer that the outputs read, (..., W) to (..., W)."""
        return torch.relu(self.decoder(torch.relu(self.encoder(torch.relu(hidden))))) + torch.relu(hidden)

    def forward(self, x: Tensor, observed: Tensor, hide: Tensor) -> Tensor:
        """Last layer, (B, W), with the fields of `hide` (B, fields) hidden."""
        visible = 1.0 - ((hide @ self.hidden_by) > 0).float()
        return self.decode(self.inputs(torch.cat([x * visible, observed * (1.0 - hide)], dim=1)))

    def train(self, mode: bool = True) -> "MaskedAutoencoder":
        """Training mode or not; weights laid out for scoring are made anew."""
        self._side_by_side = None
        return super().train(mode)

    def side_by_side(self) -> "SideBySide":
        """Weights of all views laid out for one pass; kept while the model is not in training."""
        kept = self._side_by_side
        if kept is not None and kept.weight.device == self.mean.device:
            return kept
        hidden = torch.cat([self.view_hides @ self.hidden_by, self.view_hides], dim=1) > 0  # (V, F + fields)
        weight = self.inputs.weight * hidden.logical_not()[:, None]  # (V, W, F + fields)
        width = self.encoder.in_features
        rows = [(v, *self._outputs(field)) for v, field in _READ]
        # Locations of all amounts, then their log spreads, then the classes of the codes.
        amounts = [(v, w[part], b[part]) for part in (slice(0, 1), slice(1, 2)) for v, w, b in rows[:AMOUNT_READINGS]]
        order = amounts + rows[AMOUNT_READINGS:]
        out_weight = self.mean.new_zeros(len(VIEWS) * width, sum(len(b) for _, _, b in order))
        at = 0
        for v, w, b in order:
            out_weight[v * width : (v + 1) * width, at : at + len(b)] = w.T
            at += len(b)
        target = [AMOUNT_FIELDS.index(field) for _, field in _READ[:AMOUNT_READINGS]]
        made = SideBySide(
            torch.cat([weight.reshape(-1, hidden.shape[1]).T, self.inputs.bias.repeat(len(VIEWS))[None]]).detach(),
            out_weight.detach(),
            torch.cat([b for _, _, b in order]).detach(),
            torch.tensor(target, device=self.mean.device),
            hidden,
            tuple(v for v, _, b in order for _ in b),
        )
        if not self.training:
            self._side_by_side = made
        return made

    def _outputs(self, field: str) -> tuple[Tensor, Tensor]:
        """Weight (outputs, W) and bias of one field's prediction: location and log spread, or the classes of a code."""
        if field in CODE_FIELDS:
            return self.codes[field].get_parameter("weight"), self.codes[field].get_parameter("bias")
        pair = slice(2 * AMOUNT_FIELDS.index(field), 2 * AMOUNT_FIELDS.index(field) + 2)
        return self.amounts.weight[pair], self.amounts.bias[pair]

    @torch.no_grad()
    def surprises(self, features: Tensor) -> "Surprises":
        """What each view makes of the fields that it hides: all views in one pass.

        Parameters
        ----------
        features : Tensor of shape (B, F), float32, NaN where missing.
        """
        x, observed = self.standardise(features)
        w, n = self.side_by_side(), len(x)
        first = torch.mm(torch.cat([x, observed, x.new_ones(n, 1)], dim=1), w.weight).relu_()
        first = first.view(n * len(VIEWS), self.encoder.in_features)
        # Adding a bias after the product is cheaper here than handing it to the product, which spreads it out first.
        hidden = torch.mm(first, self.encoder.weight.T).add_(self.encoder.bias).relu_()
        last = torch.mm(hidden, self.decoder.weight.T).add_(self.decoder.bias).relu_().add_(first)
        out = torch.addmm(w.out_bias, last.view(n, len(w.out_weight)), w.out_weight)
        location, log_spread = out[:, :AMOUNT_READINGS], out[:, AMOUNT_READINGS : 2 * AMOUNT_READINGS]
        precision = log_spread.clamp(MIN_LOG_SPREAD, MAX_LOG_SPREAD).neg_().exp_()
        residual = x.index_select(1, w.target).sub_(location).mul_(precision)
        # Not `observed`: a total is there, but nothing to hold it against, where one of its parts is missing.
        residual = residual.mul_(features.index_select(1, w.target).isnan().logical_not_())
        surprise, expected = [residual.abs()], [location * self.scale[w.target] + self.mean[w.target]]
        at = 2 * AMOUNT_READINGS
        for field, codes in CODE_FIELDS.items():
            views, classes = sum(f == field for _, f in _READ), len(codes) + 1
            logit = out[:, at : at + views * classes].reshape(n, views, classes).clamp(-MAX_LOGIT, MAX_LOGIT)
            code = self.code_class(features, field)[:, None, None].expand(n, views, 1)
            missed = logit.exp().sum(dim=2).log_().sub_(logit.gather(2, code)[:, :, 0])
            surprise.append(missed.mul_(observed[:, FIELDS.index(field), None]))
            expected.append(logit[:, :, :-1].argmax(dim=2).float())
            at += views * classes
        return Surprises(x, observed, torch.cat(surprise, 1), residual, torch.cat(expected, 1))

    @staticmethod
    def code_class(features: Tensor, field: str) -> Tensor:
        """Class of a code field, (B,), int64: its position in CODE_FIELDS, one past the end for any other code."""
        columns, steps = code_classes(field)
        one_hot = torch.nan_to_num(features[:, columns], nan=0.0)
        back = torch.as_tensor(steps, device=features.device, dtype=features.dtype)
        return (len(steps) - one_hot @ back).long().clamp_(0, len(steps))


_CODE_PREFIX = {"rate_code_id": "rate_code", "payment_type": "payment"}


def code_feature(field: str) -> str:
    """Name of the first of a code's features, which follow each other: 1 for one code each, as in CODE_FIELDS."""
    return f"{_CODE_PREFIX[field]}_{CODE_FIELDS[field][0]}"


def code_classes(field: str) -> tuple[slice, NDArray[np.float32]]:
    """Where a code's features stand, and how many steps back from one past the end each one's class is."""
    first, classes = FEATURE_NAMES.index(code_feature(field)), len(CODE_FIELDS[field])
    return slice(first, first + classes), np.arange(classes, 0, -1, dtype=np.float32)


@dataclass(frozen=True)
class SideBySide:
    """Weights for one pass over all views.

    Attributes
    ----------
    weight : of the first layer, what a view hides zeroed, the bias as its last row, (F + fields + 1, V W).
    out_weight, out_bias : of the readings' outputs on all views' last layers, (V W, outputs) and (outputs,).
    target : the feature that each amount reading predicts, (A,).
    hidden : what each view hides of the features and of what says whether fields are there, (V, F + fields), bool.
    out_views : the view that each output reads, (outputs,).
    """

    weight: Tensor
    out_weight: Tensor
    out_bias: Tensor
    target: Tensor
    hidden: Tensor
    out_views: tuple[int, ...]


@dataclass(frozen=True)
class Surprises:
    """What the autoencoder makes of a batch.

    Attributes
    ----------
    x : standardised features, (B, F). observed : which fields are there, (B, fields).
    surprise : per reading, (B, R): residual in spreads for amounts, -log p for codes; 0 where missing.
    residual : signed, readings of amounts only, (B, A).
    expected : the target feature as predicted, or the position of the likeliest code, (B, R).
    """

    x: Tensor
    observed: Tensor
    surprise: Tensor
    residual: Tensor
    expected: Tensor


class Head(nn.Module):
    """Weighs surprises, signed residuals and features into logits per trip, and names the fields at fault."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = N_FEATURES + len(FIELDS) + len(READINGS) + AMOUNT_READINGS
        layers: list[nn.Module] = []
        for _ in range(config.head_depth):
            layers += [nn.Linear(size, config.head_width), nn.ReLU()]
            size = config.head_width
        self.layers = nn.Sequential(*layers, nn.Linear(size, N_LOGITS + len(PREDICTED)))

    @staticmethod
    def inputs(s: Surprises) -> Tensor:
        """What the head sees, (B, H): features, presence, and tamed surprises and residuals."""
        surprise = torch.log1p(s.surprise)
        residual = torch.sign(s.residual) * torch.log1p(s.residual.abs())
        return torch.cat([s.x, s.observed, surprise, residual], dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of a known fraud and of anything changed, then of each predicted field being at fault, (B, 2 + P)."""
        out: Tensor = self.layers(inputs)
        return out


class FraudModel(nn.Module):
    """Autoencoder and head, the unit that a bundle carries."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        self.autoencoder = MaskedAutoencoder(self.config)
        self.head = Head(self.config)

    def forward(self, features: Tensor) -> tuple[Tensor, Surprises]:
        """Head's logits (B, 2 + P) and surprises of a batch of features (B, F)."""
        surprises = self.autoencoder.surprises(features)
        return self.head(Head.inputs(surprises)), surprises

    def to_json(self) -> dict[str, Any]:
        """Sizes, JSON-ready."""
        return asdict(self.config)


def as_tensor(features: NDArray[np.float32]) -> Tensor:
    """Features as a tensor that shares their memory."""
    return torch.from_numpy(features)
