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
        query, key, value = self.project(fields).chunk(3, dim=2)
        plain = torch.bmm(query, key.mT) / fields.shape[2] ** 0.5
        pairs = weights.unsqueeze(3) * weights.unsqueeze(2)  # [B, G, F, F]
        attention = self.dropout((plain.unsqueeze(1) * pairs).softmax(dim=3))
        # [B, G F, F] @ [B, F, D]
        mixed = torch.bmm((attention * weights.unsqueeze(2)).flatten(1, 2).to(value.dtype), value)
        return self.output(mixed).unflatten(1, weights.shape[1:])
