# SPDX-License-Identifier: Apache-2.0
"""GLS (Chennupati et al., 2019, arXiv 1904.08492): the geometric mean of the losses."""

from typing import Literal

from torch import Tensor

from deltarec.balancing.balancer import LossBalancer
from deltarec.config import Config as BaseConfig


class GLS(LossBalancer):
    """(Π_k L_k)^{1/K}, so w_k = (Π_j L_j)^{1/K} / (K L_k).

    A task whose loss is zero, as that of one without samples in the batch, would make the product
    zero; it is left out of the mean.
    """

    class Config(BaseConfig):
        """The method gls has no options."""

        name: Literal["gls"]

    def weights(self, losses: Tensor) -> Tensor:
        positive = losses > 0
        logs = losses.where(positive, 1).log()
        count = positive.sum().clamp(min=1)
        return ((logs.sum() / count - logs).exp() / count).where(positive, 0)
