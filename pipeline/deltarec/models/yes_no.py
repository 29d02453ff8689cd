# SPDX-License-Identifier: Apache-2.0
"""Scoring by two words: how much likelier a causal language model goes on with yes than with no.

Bao et al., TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model with
Recommendation, RecSys 2023 (arXiv 2305.00447); with soft tokens in the prompt, Zhang et al., CoLLM
(arXiv 2310.19488).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from deltarec.embeddings.collections import Embedded
from deltarec.models.roles import ScoreConfig, Scorer
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import Prompt


class YesNo(Scorer):
    """`s_yes − s_no` after the prompt; its sigmoid is `exp(s_yes) / (exp(s_yes) + exp(s_no))`."""

    class Config(ScoreConfig):
        """Options of the yes_no scorer; for causal models, pooled at the last token."""

        name: Literal["yes_no"]  # pyright: ignore[reportIncompatibleVariableOverride]
        prompt: str
        """Ends where the answer begins."""
        yes: str = "Yes"
        """The first token of each answer counts."""
        no: str = "No"

        @property
        def prompts(self) -> list[str]:
            return [self.prompt]

    causal = True

    def __init__(
        self, config: Any, language_model: LanguageModel, make_prompt: Callable[[str], Prompt]
    ) -> None:
        super().__init__(config, language_model, make_prompt)
        if language_model.config.pooling != "last":
            raise ValueError(
                f"model.language_model.pooling: '{language_model.config.pooling}', but yes_no "
                "reads the state after the prompt; take 'last'"
            )
        self.answers = answer_tokens(language_model, config.yes, config.no)
        self.prompt = make_prompt(config.prompt)

    def forward(self, language_model: LanguageModel, found: Embedded, index: Tensor) -> Tensor:
        prompts = self.prompt(language_model, found, index)
        states = language_model(prompts.embeddings, prompts.mask)
        last = language_model.pool(states, prompts.mask)
        answers = torch.tensor(self.answers, device=index.device)
        logits = language_model.logits(last, answers)
        return logits[:, 0] - logits[:, 1]


def answer_tokens(language_model: LanguageModel, yes: str, no: str) -> list[int]:
    """The first token of each of two answers.

    Raises:
        ValueError: they are one and the same.
    """
    tokens = [language_model.words(answer)[:1] for answer in (yes, no)]
    if not all(tokens) or tokens[0] == tokens[1]:
        raise ValueError(
            f"model.score: answers '{yes}' and '{no}' do not differ in their first token; "
            "choose others"
        )
    return [token for [token] in tokens]
