# SPDX-License-Identifier: Apache-2.0
"""Sparse propagation over a bipartite graph of users and items.

The matrix of a behaviour and its transpose are kept in CSR, made once: autograd of PyTorch's sparse
tensors would sort the edges anew at every backward. On CPU the product is FBGEMM's pooled look-up,
which is what a sparse product is: Σ_j values_ij x_j over the columns of row i. Measured on
1.7 million edges of 27,402 nodes, one core, fp32: 6.7 ms at width 48, where CSR by MKL takes 22.5
and COO 100.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

Normalisation = Literal["left", "right", "symmetric", "none"]


@dataclass(frozen=True)
class CSR:
    """A sparse matrix `[N, N]` of E entries."""

    starts: Tensor
    """int32 `[N + 1]`"""
    columns: Tensor
    """int32 `[E]`"""
    values: Tensor
    """float32 `[E]`"""

    @classmethod
    def of(cls, matrix: Any, device: torch.device) -> "CSR":
        """From SciPy's."""
        parts = [
            torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices)
        ]
        values = torch.from_numpy(matrix.data.astype(np.float32))
        return cls(*(part.to(device) for part in (*parts, values)))

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product with a dense matrix `[N, D]`."""
        values = self.values.to(x.dtype)
        if x.is_cuda:
            shape = (len(self.starts) - 1, len(x))
            return torch.sparse_csr_tensor(self.starts, self.columns, values, shape) @ x
        return F.embedding_bag(
            self.columns,
            x,
            self.starts,
            mode="sum",
            per_sample_weights=values,
            include_last_offset=True,
        )


@dataclass(frozen=True)
class Adjacency:
    """One behaviour's graph, normalised."""

    matrix: CSR
    transposed: CSR

    @classmethod
    def of(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        sizes: tuple[int, int],
        normalise: Normalisation,
        device: torch.device,
    ) -> "Adjacency":
        """From its events: nodes are the users, then the items.

        Args:
            users: int64 `[events]`; a pair that is there twice is one edge.
            items: int64 `[events]`
            sizes: M users and N items.
            normalise: by the degrees of rows (`left`, D⁻¹A), of columns (`right`, AD⁻¹), of both
                (`symmetric`, D^-½ A D^-½), or not.
            device: where to keep it.
        """
        num_users, num_items = sizes
        ones = np.ones(len(users), dtype=np.float64)
        bipartite = sparse.csr_matrix((ones, (users, items)), shape=sizes)
        bipartite.data[:] = 1.0  # duplicates were summed
        upper = sparse.csr_matrix((num_users, num_users))
        lower = sparse.csr_matrix((num_items, num_items))
        matrix: Any = sparse.bmat([[upper, bipartite], [bipartite.T, lower]], format="csr")
        degree = np.asarray(matrix.sum(1)).ravel()
        left, right = _POWERS[normalise]
        matrix = sparse.diags(_power(degree, left)) @ matrix @ sparse.diags(_power(degree, right))
        matrix = matrix.tocsr()
        return cls(CSR.of(matrix, device), CSR.of(matrix.T.tocsr(), device))

    def propagate(self, x: Tensor) -> Tensor:
        """Â x of `[nodes, D]`."""
        return _Propagate.apply(self, x)  # pyright: ignore[reportReturnType]


_POWERS = {"left": (-1, 0), "right": (0, -1), "symmetric": (-0.5, -0.5), "none": (0, 0)}


def _power(degree: np.ndarray, exponent: float) -> np.ndarray:
    """Nodes without edges get 0, or 1 for the exponent 0."""
    return np.where(degree > 0, np.maximum(degree, 1) ** exponent, float(exponent == 0))


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Adjacency, x: Tensor) -> Tensor:
        ctx.graph = graph
        return graph.matrix @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        [gradient] = gradients
        return None, ctx.graph.transposed @ gradient.contiguous()
