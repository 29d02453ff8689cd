# SPDX-License-Identifier: Apache-2.0
"""UniSRec's adaptor: a mixture of parametric whitenings, with a noisy gate.

Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems, KDD 2022
(arXiv 2206.05941).
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.layers.dropout import Dropout
from deltarec.layers.experts import mixture
from deltarec.layers.noise import SampleNoise
from deltarec.models.roles import TextAdaptor


class Mixture(nn.Module):
    """Whitenings `(dropout(x) − b_e) W_e`, eq. (1), weighed by their gate, eq. (2) and (3).

    The gate is `softmax(x W_g + ε (softplus(x W_n) + 0.01))`; the noise ε is standard normal, and
    there in training alone; W_g and W_n begin at zero. No expert is left out: UniSRec keeps the
    largest k = all. All experts see one dropout mask, where UniSRec draws one for each: so they are
    one matrix product, and a step is several times faster (`bench text`).
    """

    def __init__(self, input_dim: int, output_dim: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(experts, input_dim))
        self.weight = nn.Parameter(torch.empty(experts, output_dim, input_dim).normal_(std=0.02))
        self.gate = nn.Parameter(torch.zeros(experts, input_dim))
        self.spread = nn.Parameter(torch.zeros(experts, input_dim))
        self.noise = SampleNoise()

    def forward(self, x: Tensor) -> Tensor:
        scores = F.linear(x, self.gate)
        if self.training:
            scores = scores + self.noise(scores) * (F.softplus(F.linear(x, self.spread)) + 0.01)
        shift = torch.bmm(self.weight, self.bias.unsqueeze(2)).squeeze(2)  # [E, H]
        outputs = F.linear(self.dropout(x), self.weight.flatten(0, 1))
        outputs = outputs.unflatten(1, shift.shape) - shift
        return mixture(scores.softmax(dim=1), outputs)


class WhitenedMixture(TextAdaptor):
    """A mixture of whitenings of each table's own."""

    class Config(BaseConfig):
        """Options of the whitened_mixture adaptor."""

        name: Literal["whitened_mixture"]
        dim: int = Field(default=16, gt=0)
        """Columns of the field."""
        experts: int = Field(default=8, gt=0)
        dropout: float = Field(default=0.2, ge=0, lt=1)
        """Before each whitening."""

    def __init__(self, config: Config, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.output_dim = config.dim
        self.mixtures = nn.ModuleDict(
            {
                name: Mixture(dim, config.dim, config.experts, config.dropout)
                for name, dim in dims.items()
            }
        )

    def forward(self, table: str, vectors: Tensor) -> Tensor:
        return self.mixtures[table](vectors)
