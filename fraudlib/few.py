"""The model for a few rows, in numpy: a live system at rest scores one trip at a time, where each call of torch counts.

The same weights and the same sums as `fraudlib.model`, up to their order; a test holds the two together.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fraudlib import model as m
from fraudlib.features import CODE_FIELDS, FEATURE_NAMES, FIELDS

Floats = NDArray[np.float32]
FEW: Final = 32  # rows up to which this is the faster way


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _layer(layer: torch.nn.Linear) -> tuple[Floats, Floats]:
    return _numpy(layer.weight.T), _numpy(layer.bias)


class FewRows:
    """A trained model's weights, ready for a few rows.

    Parameters
    ----------
    model : in its final state.
    """

    def __init__(self, model: m.FraudModel) -> None:
        net = model.autoencoder
        views = net.side_by_side()
        self._mean, self._scale = _numpy(net.mean), _numpy(net.scale)
        self._indicator = net.indicator.cpu().numpy()
        self._views = _numpy(views.weight), _numpy(views.bias)
        self._encoder, self._decoder = _layer(net.encoder), _layer(net.decoder)
        self._out = _numpy(views.out_weight), _numpy(views.out_bias)
        self._at, self._target = views.location_at.cpu().numpy(), views.target.cpu().numpy()
        self._head = [_layer(layer) for layer in model.head.layers if isinstance(layer, torch.nn.Linear)]
        self._codes = {name: [FEATURE_NAMES.index(f) for f in m.code_features(name)] for name in CODE_FIELDS}

    def __call__(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Head's logits (n, 2 + P), surprises and expectations (n, R) each, of features (n, F)."""
        n = len(x)
        z = np.clip((x - self._mean) / self._scale, -m.CLIP, m.CLIP)
        observed = (~np.isnan(z[:, self._indicator])).astype(np.float32)
        z = np.nan_to_num(z, nan=0.0)
        first = np.maximum(_linear(np.concatenate([z, observed], axis=1), self._views), 0).reshape(n * len(m.VIEWS), -1)
        hidden = np.maximum(_linear(first, self._encoder), 0)
        last = np.maximum(_linear(hidden, self._decoder), 0) + first
        out = _linear(last, self._out).reshape(n, -1)
        surprise, expected = (np.empty((n, len(m.READINGS)), dtype=np.float32) for _ in range(2))
        location, log_spread = out[:, self._at], np.clip(out[:, self._at + 1], m.MIN_LOG_SPREAD, m.MAX_LOG_SPREAD)
        residual = (z[:, self._target] - location) * np.exp(-log_spread) * observed[:, self._target]
        surprise[:, m.AMOUNT_READINGS] = np.abs(residual)
        expected[:, m.AMOUNT_READINGS] = location * self._scale[self._target] + self._mean[self._target]
        self._read_codes(x, observed, out, surprise, expected)
        tamed = np.sign(residual) * np.log1p(np.abs(residual))
        head = np.concatenate([z, observed, np.log1p(surprise), tamed], axis=1)
        for layer in self._head[:-1]:
            head = np.maximum(_linear(head, layer), 0)
        return _linear(head, self._head[-1]), surprise, expected

    def _read_codes(self, x: Floats, observed: Floats, out: Floats, surprise: Floats, expected: Floats) -> None:
        rows = np.arange(len(x))
        for r in m.CODE_READINGS:
            at, field = m.code_outputs(r)
            classes = len(CODE_FIELDS[field])
            scores = out[:, at : at + classes + 1]
            one_hot = np.nan_to_num(x[:, self._codes[field]], nan=0.0)
            code = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), classes)
            top = scores.max(axis=1, keepdims=True)
            log_sum = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
            surprise[:, r] = (log_sum - scores[rows, code]) * observed[:, FIELDS.index(field)]
            expected[:, r] = scores[:, :classes].argmax(axis=1)


def _linear(x: Floats, layer: tuple[Floats, Floats]) -> Floats:
    return x @ layer[0] + layer[1]
