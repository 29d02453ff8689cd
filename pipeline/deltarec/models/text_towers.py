# SPDX-License-Identifier: Apache-2.0
"""Scoring by two towers: how near a language model puts a user's text and an item's."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltarec.embeddings.collections import Embedded
from deltarec.models.roles import ScoreConfig, Scorer
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import Prompt


class TextTowers(Scorer):
    """`a cos(W_u h_u, W_i h_i) + b`, h the pooled states of the two prompts; a begins at 1/τ."""

    class Config(ScoreConfig):
        """Options of the text_towers scorer."""

        name: Literal["text_towers"]  # pyright: ignore[reportIncompatibleVariableOverride]
        user: str
        """The user as text."""
        item: str
        """The item as text."""
        dim: int = Field(default=64, gt=0)
        """Of the two projections."""
        temperature: float = Field(default=0.1, gt=0)
        """τ."""

        @property
        def prompts(self) -> list[str]:
            return [self.user, self.item]

    def __init__(
        self, config: Any, language_model: LanguageModel, make_prompt: Callable[[str], Prompt]
    ) -> None:
        super().__init__(config, language_model, make_prompt)
        self.prompts = nn.ModuleList(make_prompt(prompt) for prompt in config.prompts)
        self.towers = nn.ModuleList(
            nn.Linear(language_model.dim, config.dim, bias=False) for _ in config.prompts
        )
        self.scale = nn.Parameter(torch.tensor(1 / config.temperature))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, language_model: LanguageModel, found: Embedded, index: Tensor) -> Tensor:
        sides = []
        for prompt, tower in zip(self.prompts, self.towers, strict=True):
            prompts = prompt(language_model, found, index)
            states = language_model(prompts.embeddings, prompts.mask)
            sides.append(tower(language_model.pool(states, prompts.mask)))
        return self.scale * F.cosine_similarity(*sides, dim=1) + self.bias
