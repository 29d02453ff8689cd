# SPDX-License-Identifier: Apache-2.0
"""DIN, the Deep Interest Network (Zhou et al., 2018, arXiv 1706.06978): attention by the target."""

from typing import Literal

import torch
from torch import Tensor, nn

from deltarec.embeddings.collections import JaggedSequence, pool
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.layers.rows import occurrences, seeing
from deltarec.models.roles import SequenceEncoder


class DINEncoder(SequenceEncoder):
    """The sum of the sequence's vectors e_i, each weighted by a(e_i, target) (equation 3).

    a = MLP([e; t; e − t; e ∘ t]). The weights are not normalised, as in the paper, which keeps how
    strong an interest is. Jagged throughout: the work is that of the ids there are.
    """

    class Config(MLPConfig):
        """Options of the din encoder."""

        name: Literal["din"]

    def __init__(self, config: Config, dim: int, has_target: bool) -> None:
        super().__init__(config, dim, has_target)
        if not has_target:
            raise ValueError(
                "the din encoder compares a sequence with its target; "
                "name one by features.SEQUENCE.target"
            )
        self.attention = MLP.of(4 * dim, config)
        self.score = nn.Linear(self.attention.output_dim, 1)

    def forward(self, target: Tensor | None, sequence: JaggedSequence) -> Tensor:
        assert target is not None
        items = sequence.values
        rows, places = occurrences(sequence.lengths, len(items))
        # [B, D] to [sum of lengths, D]: each id sees its own sample's target
        targets = target.index_select(0, rows)
        pairs = torch.cat([items, targets, items - targets, items * targets], dim=1)
        with seeing(self.attention, rows, places):
            weights = self.score(self.attention(pairs))
        return pool(items * weights, sequence.lengths, "sum")
