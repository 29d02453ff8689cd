# SPDX-License-Identifier: Apache-2.0
"""CAGrad (Liu et al., 2021, arXiv 2110.14048): near the mean, good for the task worst off."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from deltarec.balancing.balancer import MemorylessBalancer
from deltarec.balancing.simplex import shortest
from deltarec.config import Config as BaseConfig


class CAGrad(MemorylessBalancer):
    """(g_0 + c |g_0| / |g_w| g_w) / (1 + c²), g_0 the mean gradient and g_w = Σ_k w_k g_k.

    w minimises g_w·g_0 + c |g_0| |g_w| on the simplex. Since |g_w| is the least of
    (|g_w|² / t + t) / 2 over t > 0, and is that t, w gives the shortest point of the hull of the
    g_k + t / (c |g_0|) g_0 for the one t with |g_w| = t. On one support |g_w|² is linear in t², so
    false position in t² takes few rounds.
    """

    class Config(BaseConfig):
        """Options of the method cagrad."""

        name: Literal["cagrad"]
        c: float = Field(default=0.5, ge=0)
        """How far from the mean, relative to its length; 0 is the mean itself."""

    def __init__(self, config: Config, tasks: list[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.c = config.c

    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        mean = gram.new_full((len(gram),), 1 / len(gram))
        radius = self.c * float((mean @ gram @ mean).clamp(min=0).sqrt())
        largest = float(gram.diagonal().max())
        if radius**2 <= 1e-24 * largest:
            return mean / (1 + self.c**2)
        products, square = gram @ mean, float(mean @ gram @ mean)

        def solve(t_squared: float) -> tuple[Tensor, float]:
            """W for a t, and how much |g_w|² exceeds t²."""
            by = t_squared**0.5 / radius
            shifted = gram + by * (products.unsqueeze(0) + products.unsqueeze(1))
            w = shortest(shifted + by**2 * square)
            return w, float(w @ gram @ w) - t_squared

        # Where the hull holds zero, |g_w| = t = 0, but g_w / t has a limit, which this t is near.
        low, high = 1e-12 * largest, largest
        w, above = solve(low)
        at = low
        below = solve(high)[1]
        if above > 0:
            at, w = _root(solve, low, high, above, below)
        return (mean + radius / at**0.5 * w) / (1 + self.c**2)


def _root(
    solve: Callable[[float], tuple[Tensor, float]],
    low: float,
    high: float,
    above: float,
    below: float,
) -> tuple[float, Tensor]:
    """False position (Illinois): where the excess, positive at `low`, falls to zero."""
    tolerance, at, w, side = 1e-13 * high, high, None, 0
    for _ in range(100):
        at = high if above == below else (low * below - high * above) / (below - above)
        w, excess = solve(at)
        if abs(excess) <= tolerance or high - low <= tolerance:
            break
        if excess > 0:
            low, above = at, excess
            below = below / 2 if side > 0 else below
            side = 1
        else:
            high, below = at, excess
            above = above / 2 if side < 0 else above
            side = -1
    assert w is not None
    return at, w
