# SPDX-License-Identifier: Apache-2.0
"""Scoring by a single tower: an MLP on what a language model makes of the whole prompt."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from deltarec.embeddings.collections import Embedded
from deltarec.layers.mlp import MLP
from deltarec.models.roles import ScoreConfig, Scorer
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import Prompt


class PooledState(Scorer):
    """`w MLP(h) + b`, h the pooled states of the prompt."""

    class Config(ScoreConfig):
        """Options of the pooled_state scorer."""

        name: Literal["pooled_state"]  # pyright: ignore[reportIncompatibleVariableOverride]
        prompt: str
        """The sample as text."""
        hidden: list[PositiveInt] = []  # noqa: RUF012
        """Widths of the MLP's layers."""

        @property
        def prompts(self) -> list[str]:
            return [self.prompt]

    def __init__(
        self, config: Any, language_model: LanguageModel, make_prompt: Callable[[str], Prompt]
    ) -> None:
        super().__init__(config, language_model, make_prompt)
        self.prompt = make_prompt(config.prompt)
        self.mlp = MLP(language_model.dim, config.hidden)
        self.logit = nn.Linear(self.mlp.output_dim, 1)

    def forward(self, language_model: LanguageModel, found: Embedded, index: Tensor) -> Tensor:
        prompts = self.prompt(language_model, found, index)
        states = language_model(prompts.embeddings, prompts.mask)
        return self.logit(self.mlp(language_model.pool(states, prompts.mask))).squeeze(1)
