# SPDX-License-Identifier: Apache-2.0
"""MetaBalance (He et al., WWW 2022, arXiv 2203.06801): auxiliary gradients as large as the main's.

A tensor is a shared parameter, or the looked-up vectors of one feature; of tasks on different
samples (pairwise ones), which meet in rows alone, a table.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.gradients import TaskGradients
from deltarec.config import Config as BaseConfig


class MetaBalance(GradientBalancer):
    """g_k ← r (m_0 / m_k) g_k + (1 − r) g_k, m_k the running mean of |g_k| in each tensor; Σ_k g_k.

    Task 0 is the main one. A tensor that it does not reach keeps its gradients. A task without a
    gradient in the batch keeps its means; they are divided by 1 − β^n after n batches with one, so
    that a task that comes late is not taken for a small one.
    """

    class Config(BaseConfig):
        """Options of the method metabalance."""

        name: Literal["metabalance"]
        r: float = Field(default=0.7, ge=0, le=1)
        """How near the norms come to the main task's."""
        beta: float = Field(default=0.9, ge=0, lt=1)
        """How slowly the norms' means follow."""

    norms: Tensor
    batches: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.r, self.beta = config.r, config.beta
        self.features: list[str] = []

    def prepare(
        self,
        features: Sequence[str],
        tables: Mapping[str, int],
        shared: Sequence[Tensor],
        own: Sequence[Tensor],
    ) -> None:
        self.features = sorted(features)
        norms = torch.zeros(len(features) + len(shared), len(self.tasks), dtype=torch.float64)
        self.register_buffer("norms", norms)
        self.register_buffer("batches", torch.zeros_like(norms, dtype=torch.int64))

    def combine(self, gradients: TaskGradients) -> None:
        by_feature = gradients.feature_norms()
        shared = gradients.global_shared()
        rows = [by_feature[name] for name in self.features]
        rows += [g.flatten(1).double().norm(dim=1) for g in shared]
        now = torch.stack(rows)
        self.norms.copy_(torch.where(now > 0, self.norms.lerp(now, 1 - self.beta), self.norms))
        self.batches += now > 0
        means = self.norms / (1 - self.beta ** self.batches.double())
        known = (self.batches[:, :1] > 0) & (self.batches > 0)
        ratio = torch.where(known, means[:, :1] / means, 1)
        scales = self.r * ratio + (1 - self.r)
        at_features, at_shared = scales.split([len(self.features), len(shared)])
        gradients.scale_features(dict(zip(self.features, at_features, strict=True)))
        gradients.combined_shared = [
            torch.tensordot(scale.to(g), g, 1)
            for scale, g in zip(at_shared, gradients.shared, strict=True)
        ]
        self.note(gram=gradients.gram() if self.is_logged else None)
