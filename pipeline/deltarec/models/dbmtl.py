# SPDX-License-Identifier: Apache-2.0
"""DBMTL (Wang et al., 2019, arXiv 1902.09154): a task is told what tasks before it have found."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.experts import Experts, mixture
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.roles import TaskHeads


class DBMTLHeads(TaskHeads):
    """m_k = MLP_k(x), r_k = MLP'_k([m_k; r_j of all parents j]), logit_k = w_k · r_k + b_k.

    Without parents r_k is m_k. With experts, m_k is on top of their mixture by a gate of the task.
    A conditional task is learned on its own samples (`given`), the paper's task space.
    """

    class Config(MLPConfig):
        """Options of the dbmtl heads: `hidden` and the rest are the shape of m_k."""

        name: Literal["dbmtl"]
        parents: dict[str, list[str]] = {}  # noqa: RUF012  (pydantic copies defaults)
        """Tasks declared before, that a task is told of. A task not named has its `given`."""
        relation: list[PositiveInt] = Field(default=[32], min_length=1)
        """Widths of MLP'_k."""
        experts: int = Field(default=0, ge=0)
        """Experts below, as in mmoe; none if 0."""
        expert: list[PositiveInt] = [64]  # noqa: RUF012
        """Widths of one expert."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        self.parents = _parents(config, tasks)
        self.experts = None
        self.gates = nn.ModuleList()
        if config.experts:
            shape = config.model_copy(update={"hidden": config.expert})
            self.experts = Experts(config.experts, input_dim, shape)
            self.gates.extend(nn.Linear(input_dim, config.experts) for _ in tasks)
            input_dim = self.experts.output_dim
        self.own = nn.ModuleList(MLP.of(input_dim, config) for _ in tasks)
        width = config.hidden[-1] if config.hidden else input_dim
        widths: list[int] = []
        self.relations = nn.ModuleList()
        for parents in self.parents:
            below = width + sum(widths[parent] for parent in parents)
            hidden = config.relation if parents else []
            self.relations.append(
                MLP(below, hidden, config.activation, config.norm, config.dropout)
            )
            widths.append(hidden[-1] if hidden else width)
        self.logits = nn.ModuleList(nn.Linear(width, 1) for width in widths)

    def forward(self, representation: Tensor) -> Tensor:
        inputs = [representation] * len(self.tasks)
        if self.experts is not None:
            experts = self.experts(representation)  # [B, E, H]
            inputs = [mixture(gate(representation).softmax(dim=1), experts) for gate in self.gates]
        found: list[Tensor] = []
        for x, own, relation, parents in zip(
            inputs, self.own, self.relations, self.parents, strict=True
        ):
            found.append(relation(torch.cat([own(x), *[found[p] for p in parents]], dim=1)))
        return torch.cat([logit(r) for logit, r in zip(self.logits, found, strict=True)], dim=1)


def _parents(config: DBMTLHeads.Config, tasks: Mapping[str, Task]) -> list[list[int]]:
    """Positions of each task's parents.

    Raises:
        ValueError: a parent is not a task declared before, or no task has any.
    """
    names = list(tasks)
    unknown = config.parents.keys() - tasks.keys()
    if unknown:
        raise ValueError(f"model.heads.parents: no task is named {sorted(unknown)}; have {names}")
    parents = []
    for t, (name, task) in enumerate(tasks.items()):
        told = config.parents.get(name, [task.given] if task.given else [])
        for parent in told:
            if parent not in names[:t]:
                raise ValueError(
                    f"model.heads.parents.{name}: '{parent}' is not a task declared before; "
                    f"those are {names[:t]}"
                )
        parents.append([names.index(parent) for parent in told])
    if not any(parents):
        raise ValueError(
            f"model.heads: dbmtl tells a task what others have found, and none of {names} has a "
            "parent; set model.heads.parents or tasks.TASK.given, or choose shared_bottom"
        )
    return parents
