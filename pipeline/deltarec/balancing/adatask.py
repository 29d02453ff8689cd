# SPDX-License-Identifier: Apache-2.0
"""AdaTask (Yang et al., 2023, arXiv 2211.15055): Adam with a state for each task.

One Adam over the sum of gradients divides all tasks by the same root mean square, which the largest
task dominates. AdaTask keeps both moments by task for every shared dense parameter, so it **is**
the dense optimiser: this module makes the whole update, and `train.optimizer.dense` must be plain
`sgd`, which multiplies it by the learning rate. A task's own parameters have one state, so their
update is Adam's.

The rows of tables would need two moments a task, K times an Adam's memory, and FBGEMM's fused
optimisers see only a row's summed gradient. At the boundary each feature's gradients are therefore
divided by a running root mean square of their norm by task, and multiplied by the tasks' mean: no
task dominates a table, and the table's own optimiser and learning rate stay as they are. That part
is not in the paper.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.gradients import TaskGradients
from deltarec.config import Config as BaseConfig
from deltarec.config import Decay


class AdaTask(GradientBalancer):
    """p −= lr Σ_k m̂_k / (√v̂_k + ε), m_k and v_k Adam's moments of g_k."""

    class Config(BaseConfig):
        """Options of the method adatask."""

        name: Literal["adatask"]
        betas: list[Decay] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
        eps: float = Field(default=1e-8, gt=0)

    steps: Tensor
    feature_squares: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.betas, self.eps = config.betas, config.eps
        self.features: list[str] = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(
        self, features: Sequence[str], shared: Sequence[Tensor], own: Sequence[Tensor]
    ) -> None:
        self.features = sorted(features)
        tasks = len(self.tasks)
        squares = torch.zeros(len(features), tasks, dtype=torch.float64)
        self.register_buffer("feature_squares", squares)
        for moment in ("first", "second"):
            for i, p in enumerate(shared):
                self.register_buffer(f"{moment}_shared_{i}", p.new_zeros(tasks, *p.shape))
            for i, p in enumerate(own):
                self.register_buffer(f"{moment}_own_{i}", torch.zeros_like(p.data))

    def combine(self, gradients: TaskGradients) -> None:
        self.steps += 1
        shared, own = gradients.global_shared(), gradients.global_own()
        gradients.combined_shared = [
            self._adam(f"shared_{i}", g).sum(0) for i, g in enumerate(shared)
        ]
        gradients.combined_own = [self._adam(f"own_{i}", g) for i, g in enumerate(own)]
        gradients.scale_features(self._feature_scales(gradients.feature_norms()))
        self.note(gram=gradients.gram())

    def _adam(self, name: str, gradient: Tensor) -> Tensor:
        first, second = self.get_buffer(f"first_{name}"), self.get_buffer(f"second_{name}")
        first.lerp_(gradient, 1 - self.betas[0])
        second.lerp_(gradient.square(), 1 - self.betas[1])
        steps = self.steps.double()
        root = (second / (1 - self.betas[1] ** steps)).sqrt()
        return first / (1 - self.betas[0] ** steps) / (root + self.eps)

    def _feature_scales(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tasks' scales `[T]` at the boundary, by feature."""
        if not norms:
            return {}
        now = torch.stack([norms[name] for name in self.features]).square()
        self.feature_squares.lerp_(now, 1 - self.betas[1])
        roots = self.feature_squares.sqrt()
        reached = roots > 0
        mean = roots.sum(1, keepdim=True) / reached.sum(1, keepdim=True).clamp(min=1)
        scales = torch.where(reached, mean / roots.where(reached, 1), 0)
        return dict(zip(self.features, scales, strict=True))
