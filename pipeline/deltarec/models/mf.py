# SPDX-License-Identifier: Apache-2.0
"""Matrix factorisation, BPR-MF (Rendle et al., 2009) where the loss is pairwise."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from deltarec.models.roles import Fields, PairConfig, PairModel, Side


class MatrixFactorisation(PairModel):
    """The inner product of the rows of the query and of the item."""

    class Config(PairConfig):
        """Options of matrix factorisation."""

        name: Literal["mf"]  # pyright: ignore[reportIncompatibleVariableOverride]
        bias: bool = False
        """Whether the last column of an item's row is its bias; a query's is then not used."""

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__(config, sides)
        self.bias: bool = config.bias
        for task, (query, item) in sides.items():
            if query.shapes.num_dense or len(query.tables) != 1 or len(item.tables) != 1:
                raise ValueError(
                    f"tasks.{task}: model.pair mf knows nothing but two ids; leave the other "
                    "features out, or choose two_tower"
                )
            if query.shapes.dims != item.shapes.dims:
                raise ValueError(
                    f"tasks.{task}: model.pair mf multiplies rows of tables '{query.tables[0]}' "
                    f"and '{item.tables[0]}', which have {query.shapes.dims[0]} and "
                    f"{item.shapes.dims[0]} columns; give them one dim, or choose two_tower"
                )

    def query(self, task: str, fields: Fields) -> Tensor:
        [row] = fields.vectors
        return torch.cat([row[:, :-1], torch.ones_like(row[:, -1:])], dim=1) if self.bias else row

    def item(self, task: str, fields: Fields) -> Tensor:
        [row] = fields.vectors
        return row
