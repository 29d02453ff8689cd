# SPDX-License-Identifier: Apache-2.0
"""The few vectors that the rare ids of a field share (AutoAssign+; `embeddings/agent.py`)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hard = Literal["never", "serving", "always"]


class SharedRows(nn.Module):
    """Makes of an id's own row r what the model sees: `αᵀS + p̃ r`.

    Args:
        count: K, the vectors of S.
        dim: their width.
        std: of the normal distribution that they start from.
        hard: when p̃ is made 0 or 1; the gradient passes straight through.
    """

    def __init__(self, count: int, dim: int, std: float, hard: Hard = "never") -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, dim) * std)
        self.hard = hard

    def forward(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Rows `[n, dim]` and α with p̃, `[m, K + 1]`, to `[n, dim]`; zeros from m on."""
        actions = F.pad(actions, (0, 0, 0, len(rows) - len(actions)))
        weights, kept = actions[:, :-1], actions[:, -1:]
        if self.hard == "always" or (self.hard == "serving" and not self.training):
            kept = (kept.detach() >= 0.5).to(kept) + (kept - kept.detach())
        return torch.addcmul(weights @ self.vectors, rows, kept)
