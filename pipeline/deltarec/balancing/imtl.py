# SPDX-License-Identifier: Apache-2.0
"""IMTL (Liu et al., ICLR 2021): losses of equal scale, gradients of equal projection."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import WeightingBalancer
from deltarec.config import Config as BaseConfig


class IMTL(WeightingBalancer):
    """Weights of sum 1 by which Σ_k α_k g_k projects equally on all unit gradients u_k = g_k/|g_k|.

    α_{2…} = g_1 U' (D U')⁻¹ with rows u_1 − u_k of U and g_1 − g_k of D. The gradients are those
    of the losses e^{s_k} L_k − s_k, and s descends along their derivatives e^{s_k} L_k − 1.
    Where gradients are parallel several α will do, and the shortest is taken.
    """

    class Config(BaseConfig):
        """Options of the method imtl."""

        name: Literal["imtl"]
        loss_scale: bool = True
        """Whether s is learned (IMTL); or stays 0 (IMTL-G)."""
        lr: float = Field(default=1e-3, gt=0)
        """Learning rate of s, by plain gradient descent."""

    scale: Tensor

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.lr = config.lr if config.loss_scale else 0.0
        self.register_buffer("scale", torch.zeros(len(tasks), dtype=torch.float64))

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        scale = self.scale.cpu()
        factors = scale.exp()
        present = gram.diagonal() > 0
        weights = torch.zeros_like(losses)
        if present.any():
            scaled = gram * factors.outer(factors)
            weights[present] = equal_projections(scaled[present][:, present])
            slope = torch.where(present, factors * losses - 1, 0)
            self.scale.copy_(scale - self.lr * slope)
        return weights * factors


def equal_projections(gram: Tensor) -> Tensor:
    """α of sum 1 with (Σ_j α_j g_j)·u_k equal for all k; the diagonal is positive."""
    lengths = gram.diagonal().sqrt()
    on_units = gram / lengths  # row j, column k: g_j·u_k
    differences = on_units[:, :1] - on_units[:, 1:]  # g_j·(u_1 − u_k)
    system = differences[0] - differences[1:]  # (g_1 − g_k)·(u_1 − u_k')
    rest = differences[0] @ torch.linalg.pinv(system, rtol=1e-12)
    return torch.cat([1 - rest.sum().unsqueeze(0), rest])
