# SPDX-License-Identifier: Apache-2.0
"""Self-attention over fields that several heads weight differently."""

import torch
from torch import Tensor, nn

from deltarec.layers.dropout import Dropout


class WeightedFieldAttention(nn.Module):
    """`softmax(q kᵀ / √D) v` over fields e_i, scaled by a weight w_gi for each head g.

    Queries, keys and values are linear without bias, so they are made once for all heads: that of
    `w e` is w times that of e.

    Args:
        dim: width D of a field.
        dropout: of the attention's weights.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(dim, dim)

    def forward(self, fields: Tensor, weights: Tensor) -> Tensor:
        """Fields `[B, F, D]` and weights `[B, G, F]` to `[B, G, F, D]`."""
        return self.output(self.mixed(fields, weights))

    def mixed(self, fields: Tensor, weights: Tensor) -> Tensor:
        """The same before the last linear layer, which may be one with what comes next."""
        query, key, value = self.project(fields).chunk(3, dim=2)
        plain = torch.bmm(key, query.mT) / fields.shape[2] ** 0.5
        # Keys first: PyTorch's softmax over the last dimension is 11 times slower where it is
        # shorter than 16 (on CPU).
        of_keys = weights.mT.unsqueeze(3)  # [B, F, G, 1]
        scores = plain.unsqueeze(2) * (of_keys * weights.unsqueeze(1))
        attention = self.dropout(scores.softmax(dim=1)) * of_keys
        # [B, G F, F] @ [B, F, D]
        mixed = torch.bmm(attention.flatten(2).mT.to(value.dtype), value)
        return mixed.unflatten(1, weights.shape[1:])
