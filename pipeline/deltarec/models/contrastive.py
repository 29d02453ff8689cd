# SPDX-License-Identifier: Apache-2.0
"""Contrastive alignment: a sample's features and its text are nearer than those of others.

Li et al., CTRL: Connect Collaborative and Language Model for CTR Prediction (arXiv 2306.02841),
with its finer similarity over subspaces; Wang et al., FLIP: Fine-grained Alignment between ID-based
Models and Pretrained Language Models for CTR Prediction, RecSys 2024 (arXiv 2310.19453), with one.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.distributed import gather_rows, rank
from deltarec.models.losses import share_of_mean
from deltarec.models.roles import AlignmentLoss, Views, ViewShapes


class Contrastive(AlignmentLoss):
    """`−½ log softmax_j(s(x_i, t_j) / τ)_i − ½ log softmax_j(s(x_j, t_i) / τ)_i`, the mean over i.

    x and t are the representation and the pooled text, each projected and made of length 1. The j
    are the samples of all ranks, but for others with the very text of sample i. With M subspaces
    there are M such pairs of vectors, and `s(x, t) = Σ_m max_n x_m · t_n`.
    """

    class Config(BaseConfig):
        """Options of the contrastive loss."""

        name: Literal["contrastive"]
        weight: float = Field(default=1.0, gt=0)
        dim: int = Field(default=128, gt=0)
        """Of each projection."""
        subspaces: int = Field(default=1, gt=0)
        """CTRL's M; one is a plain cosine."""
        temperature: float = Field(default=0.7, gt=0)
        """τ; FLIP's is 0.7."""

    def __init__(self, config: Config, shapes: ViewShapes) -> None:
        super().__init__(config, shapes)
        self.config = config
        self.features = nn.Linear(shapes.representation, config.subspaces * config.dim)
        self.text = nn.Linear(shapes.text, config.subspaces * config.dim)

    def forward(self, views: Views) -> Tensor:
        features = self._subspaces(self.features(views.features.representation))
        text = self._subspaces(self.text(views.text.pooled))
        all_features, all_text = gather_rows(features), gather_rows(text)
        own = rank() * len(text) + torch.arange(len(text), device=text.device)
        excluded = views.text.hashes.unsqueeze(1) == gather_rows(views.text.hashes)
        excluded |= ~gather_rows(views.real)
        excluded.scatter_(1, own.unsqueeze(1), False)
        by_text = similarities(features, all_text) / self.config.temperature
        by_features = similarities(all_features, text).T / self.config.temperature
        values = [
            F.cross_entropy(scores.masked_fill(excluded, -torch.inf), own, reduction="none")
            for scores in (by_text, by_features)
        ]
        return share_of_mean(torch.stack(values).mean(0), views.real)

    def _subspaces(self, projected: Tensor) -> Tensor:
        """`[B, M·d]` to vectors of length 1, `[B, M, d]`."""
        return F.normalize(projected.float().unflatten(1, (self.config.subspaces, -1)), dim=2)


def similarities(features: Tensor, text: Tensor) -> Tensor:
    """`s(x_i, t_j)` of `[n, M, d]` and `[k, M, d]`, `[n, k]`."""
    found = features.new_zeros(len(features), len(text))
    for part in features.unbind(1):
        found = found + torch.stack([part @ t.T for t in text.unbind(1)]).amax(0)
    return found
