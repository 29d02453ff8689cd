# SPDX-License-Identifier: Apache-2.0
"""ESCM² (Wang et al., 2022, arXiv 2204.05125): ESMM with unbiased click-space losses."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.models.cascade import EntireSpace
from deltarec.models.multi_ipw_dr import PropensityConfig, PropensityHeads


class ESCM2Heads(PropensityHeads):
    """L_ctr + λ_c L_cvr + λ_g BCE(click ∧ conversion, pCTR · pCVR).

    L_cvr is Multi-IPW's estimate, or Multi-DR's with both of its means. The last two terms are the
    conversion task's loss.
    """

    class Config(PropensityConfig):
        """Options of the escm2 heads: the shape of one tower, the estimate, and its weights."""

        name: Literal["escm2"]
        estimator: Literal["ips", "dr"] = "ips"
        """Inverse propensities, or doubly robust: with a tower that imputes unseen losses."""
        estimate_weight: float = Field(default=1.0, gt=0)
        """λ_c."""
        global_weight: float = Field(default=1.0, ge=0)
        """λ_g."""

    def __init__(self, config: Config, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks, doubly_robust=config.estimator == "dr")
        self.estimate_weight = config.estimate_weight
        self.global_weight = config.global_weight

    def chained_loss(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        estimate = self.estimate(space, t, parent)
        return self.estimate_weight * estimate + self.global_weight * space.joint_loss(
            t, self.tasks[t]
        )
