# SPDX-License-Identifier: Apache-2.0
"""Multi-IPW and Multi-DR (Zhang et al., 2020, arXiv 1910.09337): click-space losses made unbiased.

A conversion's loss e is known only where o, the click, is 1. Divided by the propensity, which is
the click's own prediction P(o = 1) in the same network, its mean over all impressions is that of e
over all impressions. The propensity is taken as a number, without gradient, and cut off below:
an unbiased estimate with one huge weight would be worth nothing.

Where the conversion stands further down a chain, o is that all before it happened, and its
propensity the joint probability.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.layers.towers import Towers
from deltarec.models.cascade import CascadeConfig, CascadeHeads, EntireSpace
from deltarec.models.losses import sample_loss


class PropensityConfig(CascadeConfig):
    """What heads with propensities share: the shape of one tower, and where to cut."""

    smallest_propensity: float = Field(default=0.01, gt=0, le=1)
    """Propensities below it are taken to be it."""


class PropensityHeads(CascadeHeads):
    """Base of heads that estimate the mean of a loss over all samples from some of them.

    Args:
        config: the member's options.
        input_dim: width of the representation.
        tasks: by name.
        doubly_robust: whether a further tower for each conditional task imputes its loss.
    """

    def __init__(
        self,
        config: PropensityConfig,
        input_dim: int,
        tasks: Mapping[str, Task],
        doubly_robust: bool,
    ) -> None:
        super().__init__(config, input_dim, tasks)
        self.smallest = config.smallest_propensity
        conditional = [t for t, parent in enumerate(self.parents) if parent is not None]
        self.imputation = None
        if doubly_robust:
            self.imputation = Towers(len(conditional), input_dim, config.hidden, config)
        self.imputed_at = {t: len(tasks) + i for i, t in enumerate(conditional)}

    def forward(self, representation: Tensor) -> Tensor:
        logits = super().forward(representation)
        if self.imputation is None:
            return logits
        inputs = [representation] * len(self.imputed_at)
        return torch.cat([logits, self.imputation(inputs)], dim=1)

    def estimate(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        """What each sample adds to the estimate of a task's mean loss over all samples, `[B]`."""
        observed = space.mask[:, t]
        error = sample_loss(self.tasks[t], space.columns[:, t], space.labels[:, t])
        propensity = space.log_positive[parent].detach().exp().clamp(min=self.smallest)
        inverse = torch.where(observed, 1 / propensity, 0)
        if self.imputation is None:
            return error * inverse
        imputed = F.softplus(space.columns[:, self.imputed_at[t]])
        learning = (error.detach() - imputed).square()
        return imputed + (error - imputed) * inverse + learning * inverse


class MultiIPWHeads(PropensityHeads):
    """L_ctr + mean(o e / ô)."""

    class Config(PropensityConfig):
        """Options of the multi_ipw heads: the shape of one tower, and where to cut."""

        name: Literal["multi_ipw"]

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks, doubly_robust=False)

    def chained_loss(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        return self.estimate(space, t, parent)


class MultiDRHeads(PropensityHeads):
    """L_ctr + mean(ê + o (e − ê) / ô) + mean(o (e − ê)² / ô).

    ê is a tower's estimate of e, softplus of its output since e is positive; the last mean trains
    it, and it alone: there e is a number. If either ô or ê is right, the first mean is that of e
    over all samples.
    """

    class Config(PropensityConfig):
        """Options of the multi_dr heads: the shape of one tower, and where to cut."""

        name: Literal["multi_dr"]

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks, doubly_robust=True)

    def chained_loss(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        return self.estimate(space, t, parent)
