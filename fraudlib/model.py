"""The masked autoencoder of honest trips, and the head that weighs its surprises.

The autoencoder hides one field at a time and predicts it from the rest, with a spread of its own; how far the observed
value lies outside is the field's surprise. A small head, taught with planted fraud, weighs surprises, signed residuals
and features into one anomaly score.
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
CLIP = 12.0  # standardised features; beyond it a value is simply extreme


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network: widths in units."""

    width: int = 64
    latent_dim: int = 32
    head_width: int = 96
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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N_FEATURES))
        self.register_buffer("scale", torch.ones(N_FEATURES))
        hidden_by = torch.from_numpy(np.stack([hides(field) for field in FIELDS])).float()
        self.register_buffer("hidden_by", hidden_by, persistent=False)  # (fields, F)
        self._indicator = [FEATURE_NAMES.index(_INDICATOR[field]) for field in FIELDS]
        self._index = [torch.nonzero(row).flatten() for row in hidden_by]
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
        return torch.nan_to_num(x, nan=0.0), (~missing[:, self._indicator]).float()

    def decode(self, hidden: Tensor) -> Tensor:
        """First layer's sums to the layer that the outputs read, (..., W) to (..., W)."""
        return torch.relu(self.decoder(torch.relu(self.encoder(torch.relu(hidden))))) + torch.relu(hidden)

    def forward(self, x: Tensor, observed: Tensor, hide: Tensor) -> Tensor:
        """Last layer, (B, W), with the fields of `hide` (B, fields) hidden."""
        visible = 1.0 - ((hide @ self.hidden_by) > 0).float()
        return self.decode(self.inputs(torch.cat([x * visible, observed * (1.0 - hide)], dim=1)))

    def predict(self, last: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """Location and log spread of one amount field in standard deviations, (B,) each."""
        weight, bias = self.amounts.weight[2 * target : 2 * target + 2], self.amounts.bias[2 * target : 2 * target + 2]
        out = nn.functional.linear(last, weight, bias)
        return out[:, 0], out[:, 1].clamp(MIN_LOG_SPREAD, MAX_LOG_SPREAD)

    def surprises(self, features: Tensor) -> "Surprises":
        """Hide each field in turn and compare: one pass each that shares the first layer.

        Parameters
        ----------
        features : Tensor of shape (B, F), float32, NaN where missing.
        """
        x, observed = self.standardise(features)
        first = self.inputs(torch.cat([x, observed], dim=1))  # (B, W)
        weight = self.inputs.weight  # (W, F + fields)
        surprise, residual, expected = [], [], []
        for g, field in enumerate(PREDICTED):
            columns = self._index[g]
            hidden = x[:, columns] @ weight[:, columns].T + observed[:, g : g + 1] * weight[:, N_FEATURES + g]
            last = self.decode(first - hidden)
            if g < N_AMOUNTS:
                location, log_spread = self.predict(last, g)
                z = (x[:, g] - location) * torch.exp(-log_spread) * observed[:, g]
                surprise.append(z.abs())
                residual.append(z)
                expected.append(location * self.scale[g] + self.mean[g])
            else:
                logp = torch.log_softmax(self.codes[field](last), dim=1)
                code = self.code_class(features, field)
                surprise.append(-logp.gather(1, code[:, None])[:, 0] * observed[:, g])
                expected.append(logp[:, : len(CODE_FIELDS[field])].argmax(dim=1).float())
        return Surprises(x, observed, torch.stack(surprise, 1), torch.stack(residual, 1), torch.stack(expected, 1))

    def code_class(self, features: Tensor, field: str) -> Tensor:
        """Class of a code field, (B,), int64: its position in CODE_FIELDS, one past the end for any other code."""
        names = [FEATURE_NAMES.index(f"{_CODE_PREFIX[field]}_{c}") for c in CODE_FIELDS[field]]
        one_hot = torch.nan_to_num(features[:, names], nan=0.0)
        other = 1.0 - one_hot.sum(dim=1, keepdim=True)
        return torch.cat([one_hot, other], dim=1).argmax(dim=1)


_CODE_PREFIX = {"rate_code_id": "rate_code", "payment_type": "payment"}


@dataclass(frozen=True)
class Surprises:
    """What the autoencoder makes of a batch.

    Attributes
    ----------
    x : standardised features, (B, F). observed : which fields are there, (B, fields).
    surprise : per predicted field, (B, P): residual in spreads for amounts, -log p for codes; 0 where missing.
    residual : signed, amounts only, (B, A).
    expected : the target feature as predicted, or the position of the likeliest code, (B, P).
    """

    x: Tensor
    observed: Tensor
    surprise: Tensor
    residual: Tensor
    expected: Tensor


class Head(nn.Module):
    """Weighs surprises, signed residuals and features into one logit per trip, and names the fields at fault."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = N_FEATURES + len(FIELDS) + len(PREDICTED) + N_AMOUNTS
        layers: list[nn.Module] = []
        for _ in range(config.head_depth):
            layers += [nn.Linear(size, config.head_width), nn.ReLU()]
            size = config.head_width
        self.layers = nn.Sequential(*layers, nn.Linear(size, 1 + len(PREDICTED)))

    @staticmethod
    def inputs(s: Surprises) -> Tensor:
        """What the head sees, (B, H): features, presence, and tamed surprises and residuals."""
        surprise = torch.log1p(s.surprise)
        residual = torch.sign(s.residual) * torch.log1p(s.residual.abs())
        return torch.cat([s.x, s.observed, surprise, residual], dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logit of fraud, then logits of each predicted field being what was changed, (B, 1 + P)."""
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
        """Head's logits (B, 1 + P) and surprises of a batch of features (B, F)."""
        surprises = self.autoencoder.surprises(features)
        return self.head(Head.inputs(surprises)), surprises

    def to_json(self) -> dict[str, Any]:
        """Sizes, JSON-ready."""
        return asdict(self.config)


def as_tensor(features: NDArray[np.float32]) -> Tensor:
    """Features as a tensor that shares their memory."""
    return torch.from_numpy(features)
