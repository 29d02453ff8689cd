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
    a_k would be alone, that is N b = c b^{−p} with N = e M e and c = e^{1 − p}, whose numbers are
    of like size however the gradients' norms differ.

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

    def value(b: np.ndarray) -> float:
        bent = np.log(b) if power == 1 else b ** (1 - power) / (1 - power)
        return 0.5 * b @ scaled @ b - gain @ bent

    b = np.ones(len(matrix))
    for _ in range(200):
        slope = scaled @ b - gain * b**-power
        curvature = scaled + np.diag(power * gain * b ** (-power - 1))
        step = -np.linalg.solve(curvature, slope)
        decrement = -(slope @ step) / (gain * b ** (1 - power)).sum()
        length = 1.0
        # Near the minimum the full step is right, and differences of values are below rounding.
        while (b + length * step <= 0).any() or (
            decrement > 1e-8
            and value(b + length * step) > value(b) + 1e-4 * length * (slope @ step)
        ):
            length /= 2
        b = b + length * step
        if decrement <= 1e-22:
            break
    return torch.from_numpy(alone * b * size ** (-1 / (1 + power))).to(gram)
