# SPDX-License-Identifier: Apache-2.0
"""Averages a task's logit with that of a language model.

Wang et al., FLIP (RecSys 2024, arXiv 2310.19453) score so when both models are tuned; its weight is
learned without bounds, from 0 on.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltarec.data.schema import Schema
from deltarec.embeddings.collections import Embedded
from deltarec.models import SCORERS
from deltarec.models.roles import ScoreConfig
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import Prompt


class ScoredTask(nn.Module):
    """`(1 − σ(w)) logit + σ(w) score` for one task, w learned; the others' logits stay.

    Args:
        config: of the scorer.
        language_model: that it asks.
        schema: features and tasks.
        dims: width of each feature's vector.
    """

    def __init__(
        self,
        config: ScoreConfig,
        language_model: LanguageModel,
        schema: Schema,
        dims: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.task = list(schema.tasks).index(config.task) if config.task else 0
        self.weight = nn.Parameter(torch.tensor(math.log(config.share / (1 - config.share))))
        self.scorer = SCORERS[config.name](
            config, language_model, lambda text: Prompt(text, language_model, schema, dims)
        )

    def forward(
        self, columns: Tensor, language_model: LanguageModel, found: Embedded, index: Tensor
    ) -> Tensor:
        """Columns `[B, C]` of the task heads, of samples of an index `[B]`, to such columns."""
        score = self.scorer(language_model, found, index).unsqueeze(1)
        chosen = torch.arange(columns.shape[1], device=columns.device) == self.task
        averaged = torch.lerp(columns.float(), score, self.weight.sigmoid())
        return torch.where(chosen, averaged, columns.float())
