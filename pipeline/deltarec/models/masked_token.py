# SPDX-License-Identifier: Apache-2.0
"""Masked language modelling with features: what a hidden token is, by the text and the features.

Wang et al., FLIP: Fine-grained Alignment between ID-based Models and Pretrained Language Models for
CTR Prediction, RecSys 2024 (arXiv 2310.19453).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.layers.dropout import Keyed
from deltarec.models.losses import share_of_mean
from deltarec.models.roles import AlignmentLoss, Views, ViewShapes
from deltarec_kernels.splitmix import uniform


class MaskedToken(AlignmentLoss):
    """`−log softmax_w(gelu(W [s̃_t; x]) · e_w)` of a hidden token, the mean over all hidden ones.

    s̃ is the token's state where hidden ones have a learned embedding, x the representation, and e_w
    the model's embeddings of all tokens. Tokens of features' texts are hidden, no others.
    """

    class Config(BaseConfig):
        """Options of the masked_token loss."""

        name: Literal["masked_token"]
        weight: float = Field(default=1.0, gt=0)
        rate: float = Field(default=0.15, gt=0, lt=1)
        """Of the tokens that are hidden."""

    reads_tokens = True

    def __init__(self, config: Config, shapes: ViewShapes) -> None:
        super().__init__(config, shapes)
        self.config = config
        self.draw = Keyed()
        self.mask = nn.Parameter(torch.empty(shapes.text).normal_(std=0.02))
        self.predict = nn.Linear(shapes.text + shapes.representation, shapes.text)

    def forward(self, views: Views) -> Tensor:
        tokens = views.text.tokens
        assert tokens is not None, "AlignConfig sees to it"
        hidden = uniform(self.draw.bits(tokens.numbers)) < self.config.rate
        hidden &= (tokens.numbers >= 0) & views.real.unsqueeze(1)
        states = tokens.read(hidden, self.mask)
        rows, places = hidden.nonzero(as_tuple=True)
        representation = views.features.representation[rows].float()
        seen = torch.cat([states[rows, places], representation], dim=1)
        logits = F.gelu(self.predict(seen).float()) @ tokens.vocabulary.float().T
        values = F.cross_entropy(logits, tokens.numbers[rows, places], reduction="none")
        return share_of_mean(values, torch.ones_like(values, dtype=torch.bool))
