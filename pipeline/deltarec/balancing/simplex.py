# SPDX-License-Identifier: Apache-2.0
"""The shortest vector in the convex hull of a few others."""

import torch
from torch import Tensor


def shortest(gram: Tensor, iterations: int = 1000, tolerance: float = 1e-12) -> Tensor:
    """Weights w >= 0 of sum 1 that minimise w' G w, by Frank-Wolfe with away steps.

    Away steps make the convergence linear (Lacoste-Julien and Jaggi, 2015).

    Args:
        gram: inner products of the vectors, `[T, T]`.
        iterations: at most so many.
        tolerance: of the duality gap, relative to the largest entry.

    Returns:
        `[T]`
    """
    gram = gram.double()
    enough = tolerance * float(gram.abs().max())
    weights = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
    weights[int(gram.diagonal().argmin())] = 1.0
    for _ in range(iterations):
        slope = gram @ weights
        value = weights @ slope
        towards = int(slope.argmin())
        away = int(torch.where(weights > 0, slope, -torch.inf).argmax())
        gap, away_gap = value - slope[towards], slope[away] - value
        if gap <= enough:
            break
        if gap >= away_gap:
            direction, most = -weights, 1.0
            direction[towards] += 1.0
        else:
            direction = weights.clone()
            direction[away] -= 1.0
            most = float(weights[away] / (1 - weights[away]).clamp(min=1e-300))
        curvature = direction @ gram @ direction
        step = -(slope @ direction) / curvature.clamp(min=1e-300)
        weights = (weights + step.clamp(0.0, most) * direction).clamp(min=0)
        weights = weights / weights.sum()
    return weights
