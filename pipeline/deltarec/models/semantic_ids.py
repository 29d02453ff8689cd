# SPDX-License-Identifier: Apache-2.0
"""Semantic ids: an item is the few codes of its text, and each code has a vector that is learned.

Hou et al., Learning Vector-Quantized Item Representation for Transferable Sequential Recommenders
(VQ-Rec), WWW 2023 (arXiv 2210.12316): the mean of the codes' vectors. The codes are residual ones,
as in TIGER (Rajput et al., NeurIPS 2023, arXiv 2305.05065), of `deltarec text encode`.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.models.roles import TextAdaptor


class SemanticIds(TextAdaptor):
    """`1/L Σ_l V_l[c_l]`: the table's columns are the codes c, from 1 on, one a level.

    Code 0, of items without text, has a vector too.
    """

    class Config(BaseConfig):
        """Options of the semantic_ids adaptor."""

        name: Literal["semantic_ids"]
        size: int = Field(gt=1)
        """Codes of a level: `codes.size` of `text encode`."""
        dim: int = Field(default=16, gt=0)
        """Columns of the field."""

    reads_codes = True

    def __init__(self, config: Config, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.output_dim = config.dim
        self.codes = config.size + 1
        self.vectors = nn.ModuleDict(
            {name: nn.Embedding(levels * self.codes, config.dim) for name, levels in dims.items()}
        )
        for table in self.vectors.values():
            nn.init.normal_(table.weight, std=0.02)  # pyright: ignore[reportArgumentType]

    def forward(self, table: str, vectors: Tensor) -> Tensor:
        levels = torch.arange(vectors.shape[1], device=vectors.device)
        codes = vectors.round().long() + levels * self.codes
        return F.embedding_bag(codes, self.vectors[table].weight, mode="mean")  # pyright: ignore
