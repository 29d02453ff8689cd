# SPDX-License-Identifier: Apache-2.0
"""The plain sequence encoder: the mean of the sequence's vectors."""

from typing import Any, Literal

from torch import Tensor

from deltarec.config import Config as BaseConfig
from deltarec.embeddings.collections import JaggedSequence, pool
from deltarec.models.roles import SequenceEncoder


class MeanEncoder(SequenceEncoder):
    """Looks at nothing but the sequence; the target is not needed."""

    class Config(BaseConfig):
        """Options of the mean encoder."""

        name: Literal["mean"]

    def __init__(self, config: Any, dim: int, has_target: bool) -> None:
        super().__init__(config, dim, has_target)

    def forward(self, target: Tensor | None, sequence: JaggedSequence) -> Tensor:
        return pool(sequence.values, sequence.lengths, "mean")
