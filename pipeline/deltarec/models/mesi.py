# SPDX-License-Identifier: Apache-2.0
"""MESI, the decoder of CIGF (Guo et al., WWW 2023, section 4.3): experts with separate inputs."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.models.roles import Fields, PairConfig, PairModel, Side, behaviours_of

VANISHING = 1e-30
"""A sum of products of exponentials below which single precision has no digits left of it."""
PAIRS_AT_ONCE = 65_536


class MESI(PairModel):
    """The score of behaviour s: scale Σ_k softmax([E^s_u; E^s_i] W + b)_k (E^k_u · E^k_i).

    Each behaviour is an expert, and each task gates them by vectors of its own behaviour: no vector
    is the input of two tasks' gates. The gate is shared by the tasks.
    """

    class Config(PairConfig):
        """Options of mesi."""

        name: Literal["mesi"]  # pyright: ignore[reportIncompatibleVariableOverride]
        scale: float = Field(default=300.0, gt=0)
        """The factor of the released code."""

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__(config, sides)
        self.scale: float = config.scale
        self.num_behaviours, self.dim = behaviours_of("mesi", sides)
        self.own: dict[str, int] = {}
        for task, (_, item) in sides.items():
            [name] = item.shapes.names
            if name not in item.behaviours:
                raise ValueError(
                    f"tasks.{task}.item: '{name}' is not among model.graph.behaviours "
                    f"{list(item.behaviours)}, and mesi gates a task by its own behaviour"
                )
            self.own[task] = item.behaviours.index(name)
        self.gate = nn.Linear(2 * self.dim, self.num_behaviours)
        self.numbers_per_score = 2

    def query(self, task: str, fields: Fields) -> Tensor:
        [vectors] = fields.vectors
        return vectors

    def item(self, task: str, fields: Fields) -> Tensor:
        return self.query(task, fields)

    def score(self, task: str, query: Tensor, item: Tensor) -> Tensor:
        left, right = (vectors.split(self.dim, dim=1) for vectors in (query, item))
        own = self.own[task]
        gate = self.gate(torch.cat([left[own], right[own]], dim=1)).softmax(dim=1)
        experts = [(u * i).sum(1) for u, i in zip(left, right, strict=True)]
        return self.scale * (gate * torch.stack(experts, dim=1)).sum(1)

    def scores(self, task: str, queries: Tensor, items: Tensor) -> Tensor:
        # A gate's exponential is a factor of the query times one of the item, so all sums over the
        # behaviours are matrix products. Factors are scaled by their largest, for their range.
        own = self.own[task]
        weights = self.gate.weight.split(self.dim, dim=1)
        biases = self.gate.bias, torch.zeros_like(self.gate.bias)
        sides, factors = [], []
        for vectors, weight, bias in zip((queries, items), weights, biases, strict=True):
            split = vectors.view(len(vectors), self.num_behaviours, self.dim)
            logits = F.linear(split[:, own], weight, bias)
            factors.append((logits - logits.amax(1, keepdim=True)).exp())  # [n, K]
            sides.append((split * factors[-1].unsqueeze(2)).flatten(1))
        total = factors[0] @ factors[1].T
        found = self.scale * (sides[0] @ sides[1].T) / total
        if total.numel() and total.amin() < VANISHING:
            # Two gates are so far apart that all products vanish: such pairs are scored singly.
            for pairs in (total < VANISHING).nonzero().split(PAIRS_AT_ONCE):
                query, item = pairs.unbind(1)
                found[query, item] = self.score(task, queries[query], items[item])
        return found
