# SPDX-License-Identifier: Apache-2.0
"""Points of the simplex: the shortest vector of a convex hull, and the nearest point."""

import torch
from torch import Tensor


def shortest(gram: Tensor) -> Tensor:
    """Weights w >= 0 of sum 1 that minimise w' G w, by an active-set method, so exactly.

    With y = s w, the least of y' G y + (s − 1)² over s is q / (1 + q) with q = w' G w: the same w
    is best in both, and the second is a problem of non-negative least squares.

    Args:
        gram: inner products of the vectors, `[T, T]`.

    Returns:
        `[T]`, float64.
    """
    from scipy.optimize import nnls  # half a second, which jobs of other methods need not wait

    gram = gram.double()
    largest = gram.abs().max()
    values, vectors = torch.linalg.eigh(gram / largest.where(largest > 0, 1))
    root = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T
    system = torch.cat([root, torch.ones_like(root[:1])]).cpu().numpy()
    target = torch.zeros(len(system), dtype=torch.float64)
    target[-1] = 1
    weights = torch.from_numpy(nnls(system, target.numpy())[0]).to(gram)
    return weights / weights.sum()


def nearest(point: Tensor, total: float) -> Tensor:
    """The point x >= 0 of sum `total` that is nearest to a given one, `[T]` (Held et al., 1974)."""
    descending = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    shifts = (descending.cumsum(0) - total) / counts
    last = int((descending > shifts).sum().clamp(min=1)) - 1
    return (point - shifts[last]).clamp(min=0)
