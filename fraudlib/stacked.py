"""The model for a few rows: in numpy, and every hidden field in one pass where `fraudlib.model` makes a pass for each.

Over a handful of rows a pass costs what its calls cost, and numpy's are several times cheaper than PyTorch's; over many
rows the arithmetic counts, and the passes in turn share more of it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fraudlib.errors import ShapeError
from fraudlib.features import CODE_FIELDS, FEATURE_NAMES
from fraudlib.model import (
    _CODE_PREFIX,
    CLIP,
    MAX_LOG_SPREAD,
    MIN_LOG_SPREAD,
    N_AMOUNTS,
    N_FEATURES,
    PREDICTED,
    FraudModel,
)

FEW: Final = 128
Floats = NDArray[np.float32]


def _array(values: Tensor) -> Floats:
    return np.ascontiguousarray(values.detach().cpu().numpy())


def _layer(linear: nn.Linear) -> tuple[Floats, Floats]:
    return _array(linear.weight.T), _array(linear.bias)


class StackedModel:
    """A trained model's twin: the same logits, surprises and expectations up to the rounding of float32.

    Parameters
    ----------
    model : in its final state; its weights are copied.
    """

    def __init__(self, model: FraudModel) -> None:
        net = model.autoencoder
        self._mean, self._scale = _array(net.mean), _array(net.scale)
        self._indicator = np.array(net._indicator)
        self._inputs, self._encoder, self._decoder = _layer(net.inputs), _layer(net.encoder), _layer(net.decoder)
        self._hidden, self._hidden_weights = self._stack([index.tolist() for index in net._index], self._inputs[0])
        width = self._inputs[0].shape[1]
        self._amount_weights = _array(net.amounts.weight.reshape(N_AMOUNTS, 2, width).transpose(1, 2))
        self._amount_biases = _array(net.amounts.bias.reshape(N_AMOUNTS, 1, 2))
        self._codes = [
            (*_layer(net.codes[field]), [FEATURE_NAMES.index(f"{_CODE_PREFIX[field]}_{c}") for c in known])  # type: ignore[arg-type]
            for field, known in CODE_FIELDS.items()
        ]
        self._head = [_layer(layer) for layer in model.head.layers if isinstance(layer, nn.Linear)]

    @staticmethod
    def _stack(inputs_of: list[list[int]], weights: Floats) -> tuple[NDArray[np.intp], Floats]:
        """Inputs that each predicted field hides, (P, K), and their weights, (P, K, W), filled up with zeros."""
        hidden = [[*inputs_of[g], N_FEATURES + g] for g in range(len(PREDICTED))]
        most = max(map(len, hidden))
        columns = np.zeros((len(hidden), most), dtype=np.intp)
        stacked = np.zeros((len(hidden), most, weights.shape[1]), dtype=np.float32)
        for g, inputs in enumerate(hidden):
            columns[g, : len(inputs)], stacked[g, : len(inputs)] = inputs, weights[inputs]
        return columns, stacked

    def __call__(self, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Head's logits (B, 1 + P), surprises and expectations (B, P) of features (B, F), NaN where missing."""
        if features.ndim != 2 or features.shape[1] != N_FEATURES:
            raise ShapeError(f"features: expected (n, {N_FEATURES}), found {features.shape}")
        x = np.minimum(np.maximum((features - self._mean) / self._scale, -CLIP), CLIP)
        missing = np.isnan(x)
        x[missing] = 0.0
        observed = (~missing[:, self._indicator]).astype(np.float32)
        inputs = np.concatenate([x, observed], axis=1)
        hidden = inputs.T[self._hidden].transpose(0, 2, 1) @ self._hidden_weights  # (P, B, W)
        first: Floats = inputs @ self._inputs[0] + self._inputs[1] - hidden
        last = self._decode(first)
        residual, expected = self._amounts(x, observed, last)
        parts = [self._code(features, observed, last, g) for g in range(N_AMOUNTS, len(PREDICTED))]
        surprise = np.concatenate([np.abs(residual), *(part[0] for part in parts)], axis=1)
        tamed = np.sign(residual) * np.log1p(np.abs(residual))
        out = np.concatenate([x, observed, np.log1p(surprise), tamed], axis=1)
        for weights, bias in self._head[:-1]:
            out = np.maximum(out @ weights + bias, 0.0)
        logits = out @ self._head[-1][0] + self._head[-1][1]
        return logits, surprise, np.concatenate([expected, *(part[1] for part in parts)], axis=1)

    def _decode(self, hidden: Floats) -> Floats:
        hidden = np.maximum(hidden, 0.0)
        latent = np.maximum(hidden @ self._encoder[0] + self._encoder[1], 0.0)
        out: Floats = np.maximum(latent @ self._decoder[0] + self._decoder[1], 0.0) + hidden
        return out

    def _amounts(self, x: Floats, observed: Floats, last: Floats) -> tuple[Floats, Floats]:
        """Residuals in spreads and expected values of the amounts, (B, A) each."""
        out = last[:N_AMOUNTS] @ self._amount_weights + self._amount_biases  # (A, B, 2)
        location, log_spread = out[:, :, 0].T, np.minimum(np.maximum(out[:, :, 1].T, MIN_LOG_SPREAD), MAX_LOG_SPREAD)
        residual = (x[:, :N_AMOUNTS] - location) * np.exp(-log_spread) * observed[:, :N_AMOUNTS]
        return residual, location * self._scale[:N_AMOUNTS] + self._mean[:N_AMOUNTS]

    def _code(self, features: Floats, observed: Floats, last: Floats, g: int) -> tuple[Floats, Floats]:
        """Surprise and likeliest position of one code field, (B, 1) each."""
        weights, bias, columns = self._codes[g - N_AMOUNTS]
        out = last[g] @ weights + bias
        out -= out.max(axis=1, keepdims=True)
        logp = out - np.log(np.exp(out).sum(axis=1, keepdims=True))
        one_hot = features[:, columns]
        one_hot[np.isnan(one_hot)] = 0.0
        code = np.concatenate([one_hot, 1.0 - one_hot.sum(axis=1, keepdims=True)], axis=1).argmax(axis=1)
        surprise = -np.take_along_axis(logp, code[:, None], axis=1) * observed[:, g : g + 1]
        return surprise, logp[:, : len(columns)].argmax(axis=1, keepdims=True).astype(np.float32)
