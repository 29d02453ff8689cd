# SPDX-License-Identifier: Apache-2.0
"""Semantic ids by residual quantisation: a few codes for each vector, like vectors sharing some.

Level 1 has the nearest of `size` centres to the vector, level 2 the nearest centre to what is left
of it, and so on (Rajput et al., 2023, TIGER, whose quantiser is trained with an auto-encoder; here
the centres of each level are k-means', fitted to the residuals themselves). Codes count from 1: in
a table of codes, 0 is the row of an item without text.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from deltarec.config import Config

CHUNK = 4096
"""Vectors whose distances to all centres are in memory at a time."""


class ResidualConfig(Config):
    """Shape of the semantic ids."""

    levels: int = Field(default=4, gt=0)
    size: int = Field(default=256, gt=1, le=65536)
    """Centres of a level."""
    iterations: int = Field(default=25, gt=0)
    """Of k-means, at most."""
    fit_rows: int = Field(default=100_000, gt=0, le=2**24)
    """Vectors that the centres are fitted to, drawn at random where there are more."""
    seed: int = 0


class Centres(NamedTuple):
    """What codes are numbers of."""

    mean: Tensor
    """`[D]`, of the vectors that the centres were fitted to; residuals begin from it."""
    levels: Tensor
    """`[levels, size, D]`"""


def fit(vectors: Tensor, config: ResidualConfig) -> Centres:
    """Centres of each level, for vectors float32 `[N, D]`.

    Raises:
        ValueError: there are fewer vectors than centres.
    """
    if len(vectors) < config.size:
        raise ValueError(
            f"codes.size: {config.size} centres for {len(vectors)} vectors; take fewer"
        )
    random = torch.Generator().manual_seed(config.seed)
    mean = vectors.mean(0)
    drawn = torch.randperm(len(vectors), generator=random)[: config.fit_rows]
    residuals, levels = vectors[drawn] - mean, []
    for _ in range(config.levels):
        centres = kmeans(residuals, config.size, config.iterations, random)
        residuals = residuals - centres[_nearest(residuals, centres)[1]]
        levels.append(centres)
    return Centres(mean, torch.stack(levels))


def residual_codes(vectors: Tensor, centres: Centres) -> tuple[Tensor, dict[str, float]]:
    """Codes int64 `[N, levels]` of vectors float32 `[N, D]`, from 1 to `size`.

    Returns:
        The codes; and `explained`, the share of the variance that all levels together explain, and
        `shared`, the share of vectors whose codes another vector has too.
    """
    residuals, codes = vectors - centres.mean, []
    for level in centres.levels:
        nearest = _nearest(residuals, level)[1]
        residuals = residuals - level[nearest]
        codes.append(nearest + 1)
    found = torch.stack(codes, dim=1)
    counts = found.unique(dim=0, return_counts=True)[1]
    variance = (vectors - vectors.mean(0)).square().sum().clamp(min=1e-30)
    left = residuals.square().sum() / variance
    shared = counts[counts > 1].sum() / len(found)
    return found, {"explained": 1 - float(left), "shared": float(shared)}


def kmeans(points: Tensor, size: int, iterations: int, random: torch.Generator) -> Tensor:
    """Centres `[size, D]` of points `[N, D]` by Lloyd's algorithm, begun by k-means++.

    A centre that nothing is nearest to moves to the point that is farthest from its own.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=random))]
    distance, _ = _nearest(points, points[chosen])
    while len(chosen) < size:
        weights = distance if distance.any() else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1, generator=random)))
        distance = torch.minimum(distance, _nearest(points, points[chosen[-1:]])[0])
    centres = points[chosen]
    for _ in range(iterations):
        distance, nearest = _nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=size).unsqueeze(1)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        empty = (counts[:, 0] == 0).nonzero()[:, 0]
        moved[empty] = points[distance.topk(len(empty)).indices]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre, and which it is, `[N]` each."""
    lengths = centres.square().sum(1)
    distances, indices = [], []
    for part in points.split(CHUNK):
        found = torch.addmm(lengths, part, centres.T, alpha=-2).min(1)
        distances.append((found.values + part.square().sum(1)).clamp(min=0))
        indices.append(found.indices)
    return torch.cat(distances), torch.cat(indices)
