# SPDX-License-Identifier: Apache-2.0
"""DIN, the Deep Interest Network (Zhou et al., 2018, arXiv 1706.06978): attention by the target."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from deltarec.embeddings.collections import JaggedSequence
from deltarec.layers.activation_unit import ActivationUnit
from deltarec.layers.jagged import jagged_softmax, jagged_sum
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.rows import occurrences
from deltarec.models.roles import SequenceEncoder


class DINEncoder(SequenceEncoder):
    """The sum of a sequence's vectors e_i, each weighted by a(e_i, target) (equation 3).

    a = MLP([e; t; e − t; e ∘ t]), another one for each sequence. The weights are not normalised, as
    in the paper, which keeps how strong an interest is, unless `softmax` is set. Jagged throughout:
    the work is that of the ids there are. What is aligned with a sequence is one more sequence
    here.
    """

    class Config(MLPConfig):
        """Options of the din encoder."""

        name: Literal["din"]
        softmax: bool = False
        """Whether the weights of a sequence add up to one: it starts near the mean."""

    def __init__(self, config: Config, dim: int, names: Sequence[str], has_target: bool) -> None:
        super().__init__(config, dim, names, has_target)
        if not has_target:
            raise ValueError(
                "the din encoder compares a sequence with its target; "
                f"name one by features.{names[0]}.target"
            )
        self.softmax = config.softmax
        self.units = nn.ModuleList(ActivationUnit(dim, config) for _ in names)

    def forward(self, target: Tensor | None, sequences: Sequence[JaggedSequence]) -> list[Tensor]:
        assert target is not None
        vectors = []
        for unit, sequence in zip(self.units, sequences, strict=True):
            items = sequence.values
            rows, places = occurrences(sequence.lengths, len(items))
            # [B, D] to [sum of lengths, D]: each id sees its own sample's target
            weights = unit(items, target.index_select(0, rows), rows, places)
            if self.softmax:
                weights = jagged_softmax(weights, sequence.lengths)
            vectors.append(jagged_sum(items * weights, sequence.lengths))
        return vectors
