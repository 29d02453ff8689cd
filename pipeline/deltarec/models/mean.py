# SPDX-License-Identifier: Apache-2.0
"""The plain sequence encoder: the mean of a sequence's vectors."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from deltarec.config import Config as BaseConfig
from deltarec.embeddings.collections import JaggedSequence, pool
from deltarec.models.roles import SequenceEncoder


class MeanEncoder(SequenceEncoder):
    """Looks at nothing but each sequence alone; the target is not needed."""

    class Config(BaseConfig):
        """Options of the mean encoder."""

        name: Literal["mean"]

    def forward(self, target: Tensor | None, sequences: Sequence[JaggedSequence]) -> list[Tensor]:
        return [pool(sequence.values, sequence.lengths, "mean") for sequence in sequences]
