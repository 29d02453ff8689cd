# SPDX-License-Identifier: Apache-2.0
"""The plain adaptor: text vectors through fully connected layers of each table's own."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import TextAdaptor


class TextMLP(TextAdaptor):
    """`W MLP_t(x) + b`, of table t; with `hidden: []` a linear projection."""

    class Config(MLPConfig):
        """Options of the mlp adaptor."""

        name: Literal["mlp"]
        hidden: list[PositiveInt] = []  # noqa: RUF012
        """Widths of the layers before the projection."""
        dim: int = Field(default=16, gt=0)
        """Columns of the field."""

    def __init__(self, config: Config, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims)
        self.output_dim = config.dim
        self.hidden = nn.ModuleDict({name: MLP.of(dim, config) for name, dim in dims.items()})
        self.projections = nn.ModuleDict(
            {name: nn.Linear(self.hidden[name].output_dim, config.dim) for name in dims}  # pyright: ignore
        )

    def forward(self, table: str, vectors: Tensor) -> Tensor:
        return self.projections[table](self.hidden[table](vectors))
