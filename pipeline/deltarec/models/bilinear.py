# SPDX-License-Identifier: Apache-2.0
"""Bilinear decoder of a graph's vectors (DistMult's form, Yang et al., 2015)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltarec.models.roles import Fields, PairConfig, PairModel, Side, behaviours_of, merged


class Bilinear(PairModel):
    """The score of task s: scale Σ_d u_d i_d r_{s,d}, of vectors summed over the behaviours."""

    class Config(PairConfig):
        """Options of bilinear."""

        name: Literal["bilinear"]  # pyright: ignore[reportIncompatibleVariableOverride]
        scale: float = Field(default=1.0, gt=0)
        """Of sums of several layers and behaviours: a small one keeps scores near at the start."""

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__(config, sides)
        self.scale: float = config.scale
        self.num_behaviours, dim = behaviours_of("bilinear", sides)
        self.relations = nn.ParameterDict({f"of_{task}": torch.ones(dim) for task in sides})

    def query(self, task: str, fields: Fields) -> Tensor:
        return self.scale * self.item(task, fields) * self.relations[f"of_{task}"]

    def item(self, task: str, fields: Fields) -> Tensor:
        [vectors] = fields.vectors
        return merged(vectors, self.num_behaviours)

    def reached(self, task: str) -> list[nn.Parameter]:
        return [self.relations[f"of_{task}"]]
