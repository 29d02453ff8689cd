# SPDX-License-Identifier: Apache-2.0
"""ESMM (Ma et al., 2018, arXiv 1804.07931): a conditional task learned from all impressions."""

from typing import Literal

from torch import Tensor

from deltarec.models.cascade import CascadeConfig, CascadeHeads, EntireSpace


class ESMMHeads(CascadeHeads):
    """BCE(click, pCTR) + BCE(click ∧ conversion, pCTR · pCVR), both over all samples.

    pCVR has no loss of its own: it is learned as a factor of what all impressions can teach. On a
    longer chain each task is learned by the joint probability of all up to it.
    """

    class Config(CascadeConfig):
        """Options of the esmm heads: the shape of one tower."""

        name: Literal["esmm"]

    def chained_loss(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        return space.joint_loss(t, self.tasks[t])
