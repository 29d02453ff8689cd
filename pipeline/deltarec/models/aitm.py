# SPDX-License-Identifier: Apache-2.0
"""AITM (Xi et al., 2021, arXiv 2105.08489): what a step of a chain has found goes to the next."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.mlp import MLP, MLPConfig
from deltarec.models.cascade import joint_labels, parents_of, require_chain
from deltarec.models.losses import LossTerm, direct_terms, sample_loss
from deltarec.models.roles import TaskHeads

CERTAIN = 1e-6
"""A conditional probability is at most 1 less this."""


class AITMHeads(TaskHeads):
    """Towers z_k, attention over {z_k, relu(W z_parent + b)} on a chain, and a label constraint.

    A tower on a chain predicts its **joint** probability y_k, over all samples, and
    mean(max(y_k − y_parent, 0)) keeps it below its parent's. As other heads do, the
    logits give P(k | parent) = y_k / y_parent, at most 1; y_k itself stands in columns behind.
    """

    class Config(MLPConfig):
        """Options of the aitm heads: `hidden` and the rest are the shape of a tower."""

        name: Literal["aitm"]
        hidden: list[PositiveInt] = [128, 64, 32]  # noqa: RUF012  (pydantic copies defaults)
        """Widths of a task's tower; the last one is also that of the transfer."""
        constraint_weight: float = Field(default=0.6, ge=0)
        """Of the label constraint, which is part of the later task's loss."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        require_chain(tasks, config.name)
        self.parents = parents_of(tasks)
        self.constraint_weight = config.constraint_weight
        self.towers = nn.ModuleList(MLP.of(input_dim, config) for _ in tasks)
        width = config.hidden[-1] if config.hidden else input_dim
        self.transfers = nn.ModuleDict(
            {
                str(t): MLP(width, [width], "relu", dropout=config.dropout)
                for t, parent in enumerate(self.parents)
                if parent is not None
            }
        )
        self.attention = Attention(width)
        self.logits = nn.ModuleList(nn.Linear(width, 1) for _ in tasks)

    def forward(self, representation: Tensor) -> Tensor:
        """`[B, H]` to `[B, 2 T]`: logits of P(k | parent), then those of y_k."""
        found: list[Tensor] = []
        for t, (tower, parent) in enumerate(zip(self.towers, self.parents, strict=True)):
            z = tower(representation)
            if parent is not None:
                z = self.attention(z, self.transfers[str(t)](found[parent]))
            found.append(z)
        outputs = [logit(z) for logit, z in zip(self.logits, found, strict=True)]
        joint = torch.cat(outputs, dim=1)
        joint = joint.to(torch.promote_types(joint.dtype, torch.float32))
        return torch.cat([self._conditional(joint), joint], dim=1)

    def _conditional(self, joint: Tensor) -> Tensor:
        """Logits `[B, T]` of y_k / y_parent from those of y_k."""
        columns = list(joint.unbind(dim=1))
        for t, parent in enumerate(self.parents):
            if parent is not None:
                log_ratio = F.logsigmoid(joint[:, t]) - F.logsigmoid(joint[:, parent])
                log_ratio = log_ratio.clamp(max=-CERTAIN)
                columns[t] = log_ratio - torch.log(-torch.expm1(log_ratio))
        return torch.stack(columns, dim=1)

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        logits = columns[:, len(self.tasks) :]
        joint, known = joint_labels(labels, mask, self.parents)
        terms = direct_terms(self.tasks, logits, labels, mask)
        for t, parent in enumerate(self.parents):
            if parent is not None:
                loss = sample_loss(self.tasks[t], logits[:, t], joint[t])
                excess = F.relu(logits[:, t].sigmoid() - logits[:, parent].sigmoid())
                terms[t] = LossTerm(t, loss + self.constraint_weight * excess, known[t])
        return terms


class Attention(nn.Module):
    """Σ_u a_u W_3 u over two vectors u, a = softmax(⟨W_1 u, W_2 u⟩ / √D).

    One set of weights for all tasks, which start as in the released code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, own: Tensor, transferred: Tensor) -> Tensor:
        """Two `[B, D]` to one."""
        both = torch.stack([own, transferred], dim=1)  # [B, 2, D]
        scores = (self.query(both) * self.key(both)).sum(2) / both.shape[2] ** 0.5
        return (scores.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(1)
