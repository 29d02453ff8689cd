# SPDX-License-Identifier: Apache-2.0
"""STAR (Sheng et al., CIKM 2021, arXiv 2101.11427): shared weights times a scenario's own."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from deltarec.layers.dropout import Dropout
from deltarec.layers.grouped_linear import Groups
from deltarec.layers.mlp import ACTIVATIONS, MLP, MLPConfig
from deltarec.layers.scenario_norm import ScenarioNorm
from deltarec.layers.star_linear import StarLinear
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class STAR(ScenarioModule):
    """Partitioned normalisation, then star layers, over the trunk; beside them an auxiliary MLP.

    A star layer's weights are W ∘ W_s, its bias b + b_s. The auxiliary network
    sees scenario and inputs; its output stands beside the representation instead of being added to
    the logit, so that each task can weigh it. The paper's model is this with the trunk
    `{name: mlp, hidden: []}`.
    """

    class Config(MLPConfig):
        """Options of the scenario module star; `hidden` are the star layers."""

        name: Literal["star"]
        auxiliary: list[PositiveInt] = [16]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of the auxiliary network; none leaves it out."""

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        if config.norm is not None or not config.hidden:
            raise ValueError(
                "model.scenario: star normalises by scenario before its layers, of which it needs "
                "at least one; leave out norm and give hidden"
            )
        self.trunk = make_trunk(shapes)
        self.num_scenarios = num_scenarios
        widths = [self.trunk.output_dim, *config.hidden]
        self.norm = ScenarioNorm(widths[0], num_scenarios, shared=True)
        self.layers = nn.ModuleList(
            StarLinear(above, below, num_scenarios) for above, below in pairwise(widths)
        )
        self.activation = ACTIVATIONS[config.activation]()
        self.dropouts = nn.ModuleList(Dropout(config.dropout) for _ in config.hidden)
        self.auxiliary = None
        self.output_dim = widths[-1]
        if config.auxiliary:
            self.scenarios = nn.Embedding(num_scenarios, config.auxiliary[0])
            self.auxiliary = MLP(
                config.auxiliary[0] + shapes.width, config.auxiliary, config.activation
            )
            self.output_dim += self.auxiliary.output_dim

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        groups = Groups.of(scenario, self.num_scenarios)
        x = self.norm(self.trunk(fields), scenario)
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(self.activation(layer(x, groups)))
        if self.auxiliary is None:
            return x
        beside = self.auxiliary(torch.cat([self.scenarios(scenario), fields.flat()], dim=1))
        return torch.cat([x, beside], dim=1)
