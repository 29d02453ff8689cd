# SPDX-License-Identifier: Apache-2.0
"""The positive a with M a = a^{−p}, on which Nash-MTL and FairGrad rest."""

import numpy as np
import torch
from torch import Tensor

RIDGE = 1e-12
"""Of the diagonal: it bounds the answer where positive weights make the gradients cancel."""


def fixed_point(gram: Tensor, power: float = 1.0) -> Tensor:
    """The a > 0 with M a = a^{−p}, by Newton's method.

    It is the only minimum of the convex a'Ma / 2 − Σ_k h(a_k), h' = a^{−p}. With a = e b, e_k what
    a_k would be alone, that is N b = c b^{−p} with N = e M e and c = e^{1 − p}. Each equation is
    solved to 1e-10 of its sides, which takes up to 120 steps for p from 1/20 to 2 and gradients
    whose norms differ by four orders of magnitude. Beyond that some have fewer digits: for a large
    p, N b is a small difference of large numbers; a small p makes b span many orders.

    Args:
        gram: M, positive semi-definite with a positive diagonal, float64 `[T, T]`.
        power: p > 0.

    Returns:
        `[T]`
    """
    matrix = gram.cpu().numpy()
    size = matrix.diagonal().mean()
    alone = (matrix.diagonal() / size) ** (-1 / (1 + power))
    scaled = np.outer(alone, alone) * matrix / size
    scaled += RIDGE * np.diag(scaled.diagonal())
    gain = alone ** (1 - power)
    b = np.ones(len(matrix))
    for _ in range(200):
        wanted = gain * b**-power
        slope = scaled @ b - wanted
        if np.abs(slope / wanted).max() <= 1e-10:
            break
        curvature = scaled + np.diag(power * wanted / b)
        units = curvature.diagonal() ** -0.5
        step = -units * np.linalg.solve(np.outer(units, units) * curvature, units * slope)
        # Inside the positive numbers, and not far beyond the minimum along the step.
        length = min(1.0, 0.9 / max((-step / b).max(), 1e-300))
        while True:
            there = b + length * step
            if (scaled @ there - gain * there**-power) @ step <= -0.1 * (slope @ step):
                break
            length /= 2
        b = there
    return torch.from_numpy(alone * b * size ** (-1 / (1 + power))).to(gram)
