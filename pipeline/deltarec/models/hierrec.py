# SPDX-License-Identifier: Apache-2.0
"""HierRec (Gao et al., CIKM 2024, arXiv 2309.02061): layers made from scenario and features."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from deltarec.layers.field_attention import WeightedFieldAttention
from deltarec.layers.generated import FactoredBottleneck, GeneratedBottleneck, GeneratedLinear
from deltarec.layers.grouped_linear import Groups, blocks_linear
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class HierRec(ScenarioModule):
    """`MLP([O_1; …; O_G])`: an explicit layer over the trunk, then G implicit ones side by side.

    Each layer is a bottleneck of two linear maps without a nonlinearity. The explicit one's weights
    are made from the scenario, so there are as many as scenarios in the batch. The g-th implicit
    one's are made from the sample's fields: the scenario says how much each field matters, and the
    weighted fields attend to each other.
    """

    class Config(MLPConfig):
        """Options of the scenario module hierrec; `hidden` and the rest are of the last layers."""

        name: Literal["hierrec"]
        hidden: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of the layers over the implicit ones."""
        bottleneck: int = Field(default=16, gt=0)
        """Width inside a generated layer."""
        explicit: bool = True
        """Whether there is an explicit layer."""
        implicit: int = Field(default=4, ge=0)
        """G, the number of implicit layers."""
        attention: bool = True
        """Whether the fields attend to each other before they make the implicit layers' weights."""
        rank: int | None = Field(default=16, gt=0)
        """Rank of the tensor that makes the implicit layers' weights. null: full, as in the
        authors' code, at the cost of a trunk with millions of weights."""
        scenario_dim: int = Field(default=16, gt=0)
        """Width of a scenario's own vector; a multiple of `implicit`."""

        @model_validator(mode="after")
        def _consistent(self) -> "HierRec.Config":
            if not self.explicit and not self.implicit:
                raise ValueError("explicit: false with implicit: 0 leaves nothing; use name: none")
            if self.implicit and self.scenario_dim % self.implicit:
                raise ValueError(
                    f"scenario_dim: each of the {self.implicit} implicit layers takes an equal "
                    f"part of a scenario's vector, {self.scenario_dim} is no multiple of that"
                )
            return self

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.num_scenarios = num_scenarios
        self.scenarios = nn.Parameter(torch.randn(num_scenarios, config.scenario_dim))
        width = self.trunk.output_dim
        self.explicit = (
            Explicit(width, config.bottleneck, config.scenario_dim) if config.explicit else None
        )
        self.implicit = Implicit(config, shapes, width) if config.implicit else None
        self.mlp = MLP.of(width * max(1, config.implicit), config)
        self.output_dim = self.mlp.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        groups = Groups.of(scenario, self.num_scenarios)
        scenarios = groups.of_blocks(self.scenarios)
        x = self.trunk(fields)
        if self.explicit is not None:
            x = self.explicit(x, scenarios, groups)
        if self.implicit is None:
            return self.mlp(x)
        layers: list[Any] = list(self.mlp)
        x = self.implicit(x, fields, scenarios, groups, layers[0] if layers else None)
        for layer in layers[1:]:
            x = layer(x)
        return x


class Explicit(nn.Module):
    """A bottleneck made from the scenario's vector, once for each scenario."""

    def __init__(self, width: int, bottleneck: int, scenario_dim: int) -> None:
        super().__init__()
        self.down = GeneratedLinear(width, bottleneck, scenario_dim)
        self.up = GeneratedLinear(bottleneck, width, scenario_dim)

    def forward(self, x: Tensor, scenarios: Tensor, groups: Groups) -> Tensor:
        """`[B, width]` and the blocks' scenario vectors `[blocks, S]` to `[B, width]`."""
        inside = blocks_linear(groups.into_blocks(x), *self.down.made(scenarios))
        return groups.from_blocks(blocks_linear(inside, *self.up.made(scenarios)))


class Implicit(nn.Module):
    """Bottlenecks made from fields that the scenario weights; the makers are shared by all G."""

    def __init__(self, config: HierRec.Config, shapes: FieldShapes, width: int) -> None:
        super().__init__()
        dim, num_fields = shapes.common_dim("model.scenario.name: hierrec"), len(shapes.dims)
        part = config.scenario_dim // config.implicit
        self.importance = nn.Parameter(torch.randn(config.implicit, part, num_fields) / part**0.5)
        self.importance_bias = nn.Parameter(torch.zeros(config.implicit, num_fields))
        self.attention = WeightedFieldAttention(dim, config.dropout) if config.attention else None
        widths = (width, config.bottleneck, num_fields * dim)
        if config.rank is None:
            self.layers = GeneratedBottleneck(*widths)
        else:
            self.layers = FactoredBottleneck(*widths, config.rank)

    def forward(
        self,
        x: Tensor,
        fields: Fields,
        scenarios: Tensor,
        groups: Groups,
        then: nn.Linear | None = None,
    ) -> Tensor:
        """`[B, width]`, fields, and the blocks' scenario vectors to `[B, G width]`.

        Or to what `then` makes of that.
        """
        parts = scenarios.unflatten(1, self.importance.shape[:2])
        # [blocks, G, 1, part] @ [G, part, F]
        scores = (parts.unsqueeze(2) @ self.importance).squeeze(2) + self.importance_bias
        weights = scores.softmax(dim=2).index_select(0, groups.block)
        vectors = fields.stacked()
        if self.attention is None:
            condition = weights.unsqueeze(3) * vectors.unsqueeze(1)
            return self.layers(x.unsqueeze(1), condition, None, then)
        condition = self.attention.mixed(vectors, weights)
        return self.layers(x.unsqueeze(1), condition, self.attention.output, then)
