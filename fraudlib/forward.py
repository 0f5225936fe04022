"""The model's pass over a small batch in numpy: the arithmetic of `fraudlib.model` without the price of torch's calls.

A batch goes through some seventy operations. On a few rows each costs torch about 5 us whatever the size, and numpy a
fifth of that.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fraudlib.features import CODE_FIELDS, FIELDS
from fraudlib.model import (
    AMOUNT_READINGS,
    CLIP,
    MAX_LOG_SPREAD,
    MAX_LOGIT,
    MIN_LOG_SPREAD,
    N_FEATURES,
    PREDICTED,
    READING_FIELDS,
    READINGS,
    VIEWS,
    FraudModel,
    code_classes,
)

Floats = NDArray[np.float32]

MOST_ROWS: Final = 256  # from about three times as many on, torch is faster


def _array(tensor: Any) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class Forward:
    """A model's weights, laid out for a pass over a few rows.

    Parameters
    ----------
    model : not in training; changes of its weights after this are not seen.
    """

    def __init__(self, model: FraudModel) -> None:
        net, w = model.autoencoder, model.autoencoder.side_by_side()
        self._mean, self._scale, self._indicator = _array(net.mean), _array(net.scale), _array(net.indicator)
        self._first, self._out = _array(w.weight), (_array(w.out_weight), _array(w.out_bias))
        self._encoder, self._decoder = _linear(net.encoder), _linear(net.decoder)
        self._head = [_linear(layer) for layer in model.head.layers if isinstance(layer, nn.Linear)]
        self._target = _array(w.target)
        self._target_scale, self._target_mean = self._scale[self._target], self._mean[self._target]
        self._codes = [_Code(field) for field in CODE_FIELDS]

    def __call__(self, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Head's logits (n, 2 + P), surprises and expectations (n, R) of features (n, F), NaN where missing."""
        n = len(features)
        seen = np.empty((n, N_FEATURES + len(FIELDS) + 1), dtype=np.float32)
        x, observed = seen[:, :N_FEATURES], seen[:, N_FEATURES:-1]
        np.divide(features - self._mean, self._scale, out=x)
        np.minimum(np.maximum(x, -CLIP, out=x), CLIP, out=x)
        there = ~np.isnan(x)
        x[~there] = 0.0
        observed[:] = there[:, self._indicator]
        seen[:, -1] = 1.0
        first = _relu(seen @ self._first).reshape(n * len(VIEWS), -1)
        last = _relu(_applied(self._decoder, _relu(_applied(self._encoder, first))))
        last += first
        out = _applied(self._out, last.reshape(n, -1))

        location = out[:, :AMOUNT_READINGS]
        spread = out[:, AMOUNT_READINGS : 2 * AMOUNT_READINGS]
        residual = x[:, self._target] - location
        residual *= np.exp(-np.minimum(np.maximum(spread, MIN_LOG_SPREAD), MAX_LOG_SPREAD))
        residual *= there[:, self._target]
        surprise, expected = np.empty((2, n, len(READINGS)), dtype=np.float32)
        magnitude = np.abs(residual, out=surprise[:, :AMOUNT_READINGS])
        np.add(location * self._target_scale, self._target_mean, out=expected[:, :AMOUNT_READINGS])
        for code in self._codes:
            code.read(features, observed, out, surprise, expected)

        signed = np.copysign(np.log1p(magnitude), residual)
        hidden = np.concatenate([seen[:, :-1], np.log1p(surprise), signed], axis=1)
        for layer in self._head[:-1]:
            hidden = _relu(_applied(layer, hidden))
        return _applied(self._head[-1], hidden), surprise, expected


class _Code:
    """Where the readings of a code field stand, and how surprising its value is."""

    def __init__(self, field: str) -> None:
        self._columns, self._steps = code_classes(field)
        self._observed = FIELDS.index(field)
        at = [r for r, p in enumerate(READING_FIELDS) if PREDICTED[p] == field]
        self._readings = slice(at[0], at[-1] + 1)
        self._shape = (len(at), len(CODE_FIELDS[field]) + 1)
        # Outputs stand in the order of the readings: two for an amount, one for each class of a code.
        earlier = [PREDICTED[READING_FIELDS[r]] for r in range(AMOUNT_READINGS, at[0])]
        start = 2 * AMOUNT_READINGS + sum(len(CODE_FIELDS[name]) + 1 for name in earlier)
        self._outputs = slice(start, start + self._shape[0] * self._shape[1])

    def read(self, features: Floats, observed: Floats, out: Floats, surprise: Floats, expected: Floats) -> None:
        """Fill in the field's surprises and expectations."""
        n, classes = len(out), self._shape[1] - 1
        logit = out[:, self._outputs].reshape(n, *self._shape)
        logit = np.minimum(np.maximum(logit, -MAX_LOGIT), MAX_LOGIT)
        one_hot = features[:, self._columns]
        back = np.where(np.isnan(one_hot), 0.0, one_hot) @ self._steps
        code = np.minimum(np.maximum(classes - back, 0), classes).astype(np.int64)
        missed = np.log(np.exp(logit).sum(axis=2)) - logit[np.arange(n), :, code]
        np.multiply(missed, observed[:, self._observed, None], out=surprise[:, self._readings])
        expected[:, self._readings] = logit[:, :, :-1].argmax(axis=2)


def _linear(layer: nn.Linear) -> tuple[Floats, Floats]:
    return _array(layer.weight.T), _array(layer.bias)


def _applied(layer: tuple[Floats, Floats], x: Floats) -> Floats:
    weight, bias = layer
    out: Floats = x @ weight
    out += bias
    return out


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0.0, out=x)
