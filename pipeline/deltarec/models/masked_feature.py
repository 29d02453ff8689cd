# SPDX-License-Identifier: Apache-2.0
"""Masked feature modelling: what a hidden id is, by the other features and the text.

Wang et al., FLIP: Fine-grained Alignment between ID-based Models and Pretrained Language Models for
CTR Prediction, RecSys 2024 (arXiv 2310.19453).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config as BaseConfig
from deltarec.distributed import gather_rows, rank
from deltarec.layers.dropout import Keyed
from deltarec.models.losses import share_of_mean
from deltarec.models.roles import AlignmentLoss, Views, ViewShapes
from deltarec_kernels.splitmix import uniform


class MaskedFeature(AlignmentLoss):
    """`−log softmax_j(W_f [x̃_i; a_i] · v_j)_i`, the mean over hidden features f of samples i.

    x̃ is the representation without the hidden ids, wherever they stand (`hidden.py`), and a the
    text's tokens by attention from it, `softmax_t(W x̃ · s_t / √D)`. The v_j are f's vectors of the
    samples of all ranks: of i itself, and of those with another id.
    """

    class Config(BaseConfig):
        """Options of the masked_feature loss."""

        name: Literal["masked_feature"]
        weight: float = Field(default=1.0, gt=0)
        rate: float = Field(default=0.15, gt=0, lt=1)
        """Of the features of one id that are hidden."""

    def __init__(self, config: Config, shapes: ViewShapes) -> None:
        super().__init__(config, shapes)
        if not shapes.fields:
            raise ValueError(
                "model.align: masked_feature hides features of one id that no soft token of the "
                "prompt and no scenario shows; there are none"
            )
        self.config = config
        self.draw = Keyed()
        self.query = nn.Linear(shapes.representation, shapes.text)
        self.predict = nn.ModuleDict(
            {
                name: nn.Linear(shapes.representation + shapes.text, dim)
                for name, dim in shapes.fields.items()
            }
        )

    def forward(self, views: Views) -> Tensor:
        vectors_of, states = views.features.vectors, views.text.states
        ids = torch.stack([views.features.ids[name] for name in vectors_of], dim=1)
        hidden = uniform(self.draw.bits(ids)) < self.config.rate
        hidden &= (ids >= 0) & views.real.unsqueeze(1)
        masks = dict(zip(vectors_of, hidden.unbind(1), strict=True))
        representation = views.features.hide(masks).float()
        scores = torch.einsum("bd,btd->bt", self.query(representation).float(), states)
        scores = scores / states.shape[2] ** 0.5
        weights = scores.masked_fill(~views.text.mask, -torch.inf).softmax(dim=1)
        text = torch.einsum("bt,btd->bd", weights, states)
        seen = torch.cat([representation, text], dim=1)
        own = rank() * len(ids) + torch.arange(len(ids), device=ids.device)
        all_ids, all_real = gather_rows(ids), gather_rows(views.real)
        values = []
        for f, (name, vectors) in enumerate(vectors_of.items()):
            logits = self.predict[name](seen).float() @ gather_rows(vectors.float()).T
            excluded = (ids[:, f : f + 1] == all_ids[:, f]) | (all_ids[:, f] < 0) | ~all_real
            excluded.scatter_(1, own.unsqueeze(1), False)
            logits = logits.masked_fill(excluded, -torch.inf)
            values.append(F.cross_entropy(logits, own, reduction="none"))
        return share_of_mean(torch.stack(values, dim=1).flatten(), hidden.flatten())
