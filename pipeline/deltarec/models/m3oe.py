# SPDX-License-Identifier: Apache-2.0
"""M3oE (Zhang et al., SIGIR 2024, arXiv 2404.18465): shared experts, and those of scenarios."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltarec.layers.grouped_linear import GroupedLinear, Groups
from deltarec.layers.mlp import ACTIVATIONS, MLP, MLPConfig
from deltarec.layers.star_linear import StarLinear
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class M3oE(ScenarioModule):
    """`Σ_e gate_s(sg(x))_e f_e(x) + α_s act(β_s D_s x + (1 − β_s) mean of D_t x over t ≠ s)`.

    x = the trunk's output plus a star layer of it; α_s and β_s are learned, between 0 and 1. A
    scenario's expert D is one layer, and experts are mixed before their activation: the mean of the
    others is then one product with the mean of their weights, instead of one for each scenario. It
    is the only module here that reads the weights of scenarios that are absent from a batch.
    The task experts of the paper are the role of the task heads; α and β are learned with
    everything else, where the paper fits them on validation data.
    """

    class Config(MLPConfig):
        """Options of the scenario module m3oe; `hidden` and the rest are of one shared expert."""

        name: Literal["m3oe"]
        experts: int = Field(default=4, gt=0)
        """How many experts all scenarios share."""

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
        width = self.trunk.output_dim
        self.star = StarLinear(width, width, num_scenarios)
        self.experts = nn.ModuleList(MLP.of(width, config) for _ in range(config.experts))
        self.gate = GroupedLinear(width, config.experts, num_scenarios)
        self.output_dim = config.hidden[-1] if config.hidden else width
        self.own = GroupedLinear(width, self.output_dim, num_scenarios)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(self.output_dim)
        self.balance = nn.Parameter(torch.zeros(num_scenarios, 2))

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        groups = Groups.of(scenario, self.num_scenarios)
        x = self.trunk(fields)
        x = x + self.activation(self.star(x, groups))
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        gate = self.gate(x.detach(), groups).softmax(dim=1).unsqueeze(1)
        shared = torch.bmm(gate, experts.to(gate.dtype)).squeeze(1)
        alpha, beta = self.balance.sigmoid().index_select(0, scenario).split(1, dim=1)
        own = self.own(x, groups)
        mixed = torch.lerp(self._others(x, own), own, beta.to(own.dtype))
        return self.norm(shared + alpha * self.activation(mixed))

    def _others(self, x: Tensor, own: Tensor) -> Tensor:
        """The mean of the other scenarios' experts, `[B, output_dim]`; 0 if there are none."""
        if self.num_scenarios == 1:
            return torch.zeros_like(own)
        assert self.own.bias is not None
        everyone = torch.addmm(self.own.bias.sum(0), x, self.own.weight.sum(0))
        return (everyone - own) / (self.num_scenarios - 1)
