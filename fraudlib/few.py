"""The model for a few rows, in numpy: a live system at rest scores one trip at a time, where each call of torch counts.

The same weights and the same sums as `fraudlib.model`, up to their order; a test holds the two together.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fraudlib import model as m
from fraudlib.features import CODE_FIELDS, FIELDS

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
        self._views = _numpy(views.weight[:-1]), _numpy(views.weight[-1])
        self._encoder, self._decoder = _layer(net.encoder), _layer(net.decoder)
        self._out = _numpy(views.out_weight), _numpy(views.out_bias)
        self._target = views.target.cpu().numpy()
        self._head = [_layer(layer) for layer in model.head.layers if isinstance(layer, torch.nn.Linear)]

    def __call__(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Head's logits (n, 2 + P), surprises and expectations (n, R) each, of features (n, F)."""
        n = len(x)
        z = np.clip((x - self._mean) / self._scale, -m.CLIP, m.CLIP)
        observed = (~np.isnan(z[:, self._indicator])).astype(np.float32)
        z = np.nan_to_num(z, nan=0.0)
        first = np.maximum(_linear(np.concatenate([z, observed], axis=1), self._views), 0).reshape(n * len(m.VIEWS), -1)
        hidden = np.maximum(_linear(first, self._encoder), 0)
        last = np.maximum(_linear(hidden, self._decoder), 0) + first
        out = _linear(last.reshape(n, -1), self._out)
        location, log_spread, codes = np.split(out, [m.AMOUNT_READINGS, 2 * m.AMOUNT_READINGS], axis=1)
        precision = np.exp(-np.clip(log_spread, m.MIN_LOG_SPREAD, m.MAX_LOG_SPREAD))
        residual = (z[:, self._target] - location) * precision * observed[:, self._target]
        usual = location * self._scale[self._target] + self._mean[self._target]
        code_surprise, likeliest = self._codes(x, observed, codes)
        surprise = np.concatenate([np.abs(residual), *code_surprise], axis=1)
        tamed = np.sign(residual) * np.log1p(np.abs(residual))
        head = np.concatenate([z, observed, np.log1p(surprise), tamed], axis=1)
        for layer in self._head[:-1]:
            head = np.maximum(_linear(head, layer), 0)
        return _linear(head, self._head[-1]), surprise, np.concatenate([usual, *likeliest], axis=1)

    @staticmethod
    def _codes(x: Floats, observed: Floats, out: Floats) -> tuple[list[Floats], list[Floats]]:
        surprise: list[Floats] = []
        likeliest: list[Floats] = []
        n, at = len(x), 0
        for field, codes in CODE_FIELDS.items():
            views, classes = sum(r.startswith(field) for r in m.READINGS), len(codes) + 1
            scores = out[:, at : at + views * classes].reshape(n, views, classes)
            code = m.MaskedAutoencoder.code_class(torch.from_numpy(x), field).numpy()
            top = scores.max(axis=2)
            log_sum = top + np.log(np.exp(scores - top[:, :, None]).sum(axis=2))
            missed = log_sum - scores[np.arange(n), :, code]
            surprise.append(missed * observed[:, FIELDS.index(field), None])
            likeliest.append(scores[:, :, :-1].argmax(axis=2).astype(np.float32))
            at += views * classes
        return surprise, likeliest


def _linear(x: Floats, layer: tuple[Floats, Floats]) -> Floats:
    return x @ layer[0] + layer[1]
