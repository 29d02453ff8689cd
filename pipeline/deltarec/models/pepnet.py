# SPDX-License-Identifier: Apache-2.0
"""PEPNet (Chang et al., KDD 2023, arXiv 2302.01115): gates by scenario and by who and what."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.layers.gate import Gate
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule, Trunk


class PEPNet(ScenarioModule):
    """EPNet gates the trunk's inputs by the scenario, PPNet the layers of its deep part by ids.

    EPNet: x' = x ∘ gate([scenario; sg(x)]). PPNet: h_l ∘ gate_l([ids; sg(x')]), ids as they were
    before EPNet. sg stops the gradient: a gate reads the inputs without changing them; the trunk's
    own way does change them.
    """

    class Config(BaseConfig):
        """Options of the scenario module pepnet."""

        name: Literal["pepnet"]
        epnet: bool = True
        """Whether the inputs are gated."""
        ppnet: bool = True
        """Whether the layers of the trunk's deep part are gated."""
        ids: list[str] | None = Field(default=None, min_length=1)
        """Features that PPNet's gates see with a gradient: user, item, author. All if not given."""
        gate: int = Field(default=64, gt=0)
        """Width inside a gate."""
        scenario_dim: int = Field(default=16, gt=0)
        """Width of a scenario's own vector."""

        @model_validator(mode="after")
        def _consistent(self) -> "PEPNet.Config":
            if not self.epnet and not self.ppnet:
                raise ValueError("epnet: false with ppnet: false leaves nothing; use name: none")
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
        self.output_dim = self.trunk.output_dim
        if config.epnet:
            self.scenarios = nn.Embedding(num_scenarios, config.scenario_dim)
            self.epnet = Gate(config.scenario_dim + shapes.width, config.gate, shapes.width)
        else:
            self.epnet = None
        self.ids = _positions(shapes.names, config.ids)
        widths = self.trunk.widths[1:] if config.ppnet else ()
        if config.ppnet and not widths:
            raise ValueError(
                "model.scenario.ppnet: the trunk has no hidden layers to gate; "
                "add to model.trunk.hidden, or set ppnet: false"
            )
        seen = sum(shapes.dims[i] for i in self.ids) + shapes.width
        self.ppnet = nn.ModuleList(Gate(seen, config.gate, width) for width in widths)

    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        ids = [fields.vectors[i] for i in self.ids]
        if self.epnet is not None:
            x = fields.flat()
            gate = self.epnet(torch.cat([self.scenarios(scenario), x.detach()], dim=1))
            fields = fields.mapped(lambda x: x * gate)
        if not self.ppnet:
            return self.trunk(fields)
        seen = torch.cat([*ids, fields.flat().detach()], dim=1)

        def adapt(level: int, h: Tensor) -> Tensor:
            return h if level == 0 else h * self.ppnet[level - 1](seen)

        return self.trunk(fields, adapt)


def _positions(names: tuple[str, ...], chosen: list[str] | None) -> list[int]:
    """Where the chosen fields stand."""
    unknown = sorted(set(chosen or ()) - set(names))
    if unknown:
        raise ValueError(
            f"model.scenario.ids: '{unknown[0]}' is no sparse feature: one of {', '.join(names)}"
        )
    return [i for i, name in enumerate(names) if chosen is None or name in chosen]
