# SPDX-License-Identifier: Apache-2.0
"""HAMUR (Li et al., CIKM 2023, arXiv 2309.06217): adapters generated for each sample."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.layers.grouped_linear import Groups
from deltarec.layers.hyper_adapter import HyperAdapter, InstanceMatrix
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class HAMUR(ScenarioModule):
    """One trunk for all scenarios, with adapters after the last layers of its deep part.

    A hyper-network that scenarios share makes the sample's matrix I; each adapter surrounds it
    with low-rank factors of the scenario's own and normalises by the scenario's own statistics, as
    the paper's figure has it. A trunk's wide, cross or factorisation part stays as it is.
    """

    class Config(BaseConfig):
        """Options of the scenario module hamur."""

        name: Literal["hamur"]
        adapters: int = Field(default=1, gt=0)
        """How many of the deep part's last layers are followed by an adapter."""
        rank: int = Field(default=16, gt=0)
        """k: a sample's matrix is [k, k]. The paper's code: 35 for MovieLens-1M, 65 for Ali-CCP."""
        bottleneck: int = Field(default=32, gt=0)
        """Units inside an adapter."""
        hyper: list[PositiveInt] = [64]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of the hyper-network's hidden layers."""
        variant: Literal["paper", "released"] = "paper"
        """`released`: all scenarios share the factors and the normalisation, as in the authors'
        code, so that an adapter knows the scenario by the sample's features only."""
        initialisation: Literal["orthogonal", "released"] = "orthogonal"
        """`released`: factors of ones; all units of a bottleneck then stay the same for good."""

    def __init__(
        self,
        config: Config,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__(config, shapes, num_scenarios, make_trunk)
        self.trunk = make_trunk(shapes)
        self.output_dim = self.trunk.output_dim
        layers = len(self.trunk.widths) - 1
        if layers < config.adapters:
            raise ValueError(
                f"model.scenario.adapters: {config.adapters} adapters need as many hidden layers, "
                f"the trunk has {max(layers, 0)}; add to model.trunk.hidden"
            )
        self.first = layers - config.adapters + 1
        self.shared = config.variant == "released"
        self.num_sets = 1 if self.shared else num_scenarios
        self.hyper = InstanceMatrix(shapes.width, config.hyper, config.rank)
        self.adapters = nn.ModuleList(
            HyperAdapter(
                width,
                config.rank,
                config.bottleneck,
                self.num_sets,
                collapse=config.initialisation == "released",
            )
            for width in self.trunk.widths[self.first :]
        )

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        if self.shared:
            scenario = torch.zeros_like(scenario)
        groups = Groups.of(scenario, self.num_sets)
        instance = self.hyper(fields.flat())

        def adapt(level: int, h: Tensor) -> Tensor:
            if level < self.first:
                return h
            return self.adapters[level - self.first](h, instance, scenario, groups)

        return self.trunk(fields, adapt)
