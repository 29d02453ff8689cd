# SPDX-License-Identifier: Apache-2.0
"""Aligned-MTL (Senushkin et al., 2023, arXiv 2305.19000): a well-conditioned set of gradients."""

from typing import Literal

import torch
from torch import Tensor

from deltarec.balancing.balancer import MemorylessBalancer
from deltarec.config import Config as BaseConfig


class AlignedMTL(MemorylessBalancer):
    """w = B 1, B = √λ_min V diag(λ^{−1/2}) V' from G G' = V diag(λ) V'.

    The gradients B G have equal singular values √λ_min. Eigenvalues that are zero, as those of
    parallel gradients, stay out of λ_min and of B.
    """

    class Config(BaseConfig):
        """The method aligned_mtl has no options."""

        name: Literal["aligned_mtl"]

    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        return alignment(gram).sum(1)


def alignment(gram: Tensor) -> Tensor:
    """B `[T, T]`, from a Gram matrix that is not zero."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return (vectors * (values[0] / values).sqrt()) @ vectors.T
