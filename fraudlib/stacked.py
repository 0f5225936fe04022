"""The model for a few rows: every hidden field in one pass, where `fraudlib.model` makes a pass for each.

A pass over a handful of rows costs what its calls cost, not its arithmetic; over many rows the arithmetic counts, and
the passes in turn share more of it.
"""

from typing import Final

import torch
from torch import Tensor, nn

from fraudlib.features import CODE_FIELDS
from fraudlib.model import (
    MAX_LOG_SPREAD,
    MIN_LOG_SPREAD,
    N_AMOUNTS,
    N_FEATURES,
    PREDICTED,
    FraudModel,
    Head,
    Surprises,
)

FEW: Final = 256


class StackedModel(nn.Module):
    """A trained model's twin for inference: the same logits and surprises, up to the order of its sums.

    Parameters
    ----------
    model : in its final state and on its device; its weights are copied where they have to be stacked.
    """

    columns: Tensor
    weights: Tensor
    amount_weights: Tensor
    amount_biases: Tensor

    def __init__(self, model: FraudModel) -> None:
        super().__init__()
        self._model = model
        self._autoencoder = net = model.autoencoder
        device, width = net.inputs.weight.device, net.inputs.weight.shape[0]
        hidden = [[*net._index[g].tolist(), N_FEATURES + g] for g in range(len(PREDICTED))]
        most = max(map(len, hidden))
        # Fields that hide fewer inputs are filled up with weights of zero.
        columns = torch.zeros(len(PREDICTED), most, dtype=torch.long, device=device)
        weights = torch.zeros(len(PREDICTED), most, width, device=device)
        for g, inputs in enumerate(hidden):
            columns[g, : len(inputs)] = torch.tensor(inputs, device=device)
            weights[g, : len(inputs)] = net.inputs.weight.detach()[:, inputs].T
        self.columns, self.weights = columns, weights
        self.amount_weights = net.amounts.weight.detach().reshape(N_AMOUNTS, 2, width).transpose(1, 2).contiguous()
        self.amount_biases = net.amounts.bias.detach().reshape(N_AMOUNTS, 1, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Surprises]:
        """Head's logits (B, 1 + P) and surprises of features (B, F), as `FraudModel.forward` gives them."""
        net = self._autoencoder
        x, observed = net.standardise(features)
        inputs = torch.cat([x, observed], dim=1)
        hidden = torch.bmm(inputs.T[self.columns].transpose(1, 2), self.weights)  # (P, B, W)
        last = net.decode(net.inputs(inputs) - hidden)
        out = torch.baddbmm(self.amount_biases, last[:N_AMOUNTS], self.amount_weights)  # (A, B, 2)
        location, log_spread = out[..., 0].T, out[..., 1].T.clamp(MIN_LOG_SPREAD, MAX_LOG_SPREAD)
        residual = (x[:, :N_AMOUNTS] - location) * torch.exp(-log_spread) * observed[:, :N_AMOUNTS]
        surprise = [residual.abs()]
        expected = [location * net.scale[:N_AMOUNTS] + net.mean[:N_AMOUNTS]]
        for g, field in enumerate(CODE_FIELDS, start=N_AMOUNTS):
            logp = torch.log_softmax(net.codes[field](last[g]), dim=1)
            code = net.code_class(features, field)
            surprise.append(-logp.gather(1, code[:, None]) * observed[:, g : g + 1])
            expected.append(logp[:, : len(CODE_FIELDS[field])].argmax(dim=1, keepdim=True).float())
        surprises = Surprises(x, observed, torch.cat(surprise, 1), residual, torch.cat(expected, 1))
        return self._model.head(Head.inputs(surprises)), surprises
