# SPDX-License-Identifier: Apache-2.0
"""Aligns what features and text make of the same samples: the first of two stages.

A job with `model.align` draws the representation of its trunk and a text's states together, by
losses of a registry (`ALIGNMENT_LOSSES`). A second job without it begins with the first one's
tables and layers (`train.warm_start`) and is trained on its tasks: it has learned from text, and is
served without. Evaluations of both are those of the ranking model alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deltarec.config import Config, OneOf
from deltarec.data.batch import Batch
from deltarec.data.schema import IdFeature, Schema
from deltarec.embeddings.collections import Embedded
from deltarec.models import ALIGNMENT_LOSSES
from deltarec.models.hidden import showing
from deltarec.models.roles import Features, Text, Tokens, Views, ViewShapes
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import ABSENT, Prompt, Prompts, features_of, hash_vectors


class AlignConfig(Config):
    """What is aligned with what, and by which losses."""

    prompt: str | None = None
    """A sample as text, for the language model: `{feature}` is the text of a frozen table of
    tokens, `<feature>` a soft token."""
    vectors: list[str] = []  # noqa: RUF012
    """Instead: features of frozen tables of vectors, such as those of `text encode`, side by
    side."""
    losses: list[Annotated[Config, OneOf(ALIGNMENT_LOSSES)]] = Field(min_length=1)
    """Each once."""
    tasks: float = Field(default=0.0, ge=0)
    """Weight of the tasks' losses beside them."""

    @property
    def names(self) -> list[str]:
        """Of the losses."""
        return [loss.name for loss in self.losses]  # pyright: ignore[reportAttributeAccessIssue]

    @model_validator(mode="after")
    def _consistent(self) -> "AlignConfig":
        if (self.prompt is None) == (not self.vectors):
            raise ValueError("give either 'prompt' or 'vectors'")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"losses: one is there twice among {self.names}")
        for name in self.names:
            if ALIGNMENT_LOSSES[name].reads_tokens and self.prompt is None:
                raise ValueError(f"losses: {name} hides tokens of a text; give 'prompt'")
        return self


class Alignment(nn.Module):
    """The losses of a batch.

    Args:
        config: which.
        schema: of the features.
        dims: width of each feature's vector.
        representation: width of the trunk's.
        language_model: that reads the prompt, if there is one.
        texts: features that are no fields.
    """

    def __init__(
        self,
        config: AlignConfig,
        schema: Schema,
        dims: Mapping[str, int],
        representation: int,
        language_model: LanguageModel | None,
        texts: Sequence[str],
    ) -> None:
        super().__init__()
        self.config = config
        soft = features_of(config.prompt, "soft") if config.prompt is not None else []
        self.features = [
            name
            for name in schema.trained
            if isinstance(schema.sparse[name], IdFeature)
            and name not in texts
            and not showing(schema, name).intersection(soft)
            and not (schema.scenario and schema.scenario.column == schema.column(name))
        ]
        """That a loss may hide: those of one id, of trained tables, if nothing else shows them that
        cannot be hidden with them."""
        self.prompt = None
        width = sum(dims[name] for name in config.vectors)
        if config.prompt is not None:
            assert language_model is not None
            self.prompt = Prompt(config.prompt, language_model, schema, dims)
            width = language_model.dim
        shapes = ViewShapes(representation, width, {name: dims[name] for name in self.features})
        self.losses = nn.ModuleDict(
            {
                name: ALIGNMENT_LOSSES[name](loss, shapes)
                for name, loss in zip(config.names, config.losses, strict=True)
            }
        )

    def forward(
        self,
        found: Embedded,
        batch: Batch,
        representation: Tensor,
        hide: Callable[[Mapping[str, Tensor]], Tensor],
        language_model: LanguageModel | None,
    ) -> Tensor:
        """This rank's shares of the losses, each times its weight: `[A]`.

        Args:
            found: the looked-up vectors.
            batch: whose they are.
            representation: `[B, H]`, of the trunk.
            hide: the same without some samples' ids.
            language_model: as in the constructor.
        """
        features = Features(
            representation,
            {name: found.pooled[name] for name in self.features},
            {name: batch.ids(name) for name in self.features},
            hide,
        )
        if self.prompt is None:
            vectors = torch.cat([found.pooled[name] for name in self.config.vectors], dim=1)
            text = of_vectors(vectors.float())
        else:
            assert language_model is not None
            text = of_prompts(self.prompt(language_model, found, batch.index), language_model)
        views = Views(features, text, (batch.index >= 0) & text.present)
        shares = [
            loss.weight * self.losses[loss.name](views)  # pyright: ignore[reportAttributeAccessIssue]
            for loss in self.config.losses
        ]
        return torch.stack(shares)


def of_vectors(vectors: Tensor) -> Text:
    """Vectors `[B, D]` as texts of one token; a vector of zeros is none."""
    present = (vectors != 0).any(1)
    return Text(
        vectors.unsqueeze(1),
        torch.ones_like(present).unsqueeze(1),
        vectors,
        hash_vectors(vectors),
        present,
    )


def of_prompts(prompts: Prompts, language_model: LanguageModel) -> Text:
    """What a language model makes of prompts."""

    def read(hidden: Tensor, instead: Tensor) -> Tensor:
        embeddings = torch.where(hidden.unsqueeze(2), instead, prompts.embeddings)
        return language_model(embeddings, prompts.mask)

    states = language_model(prompts.embeddings, prompts.mask)
    tokens = Tokens(
        torch.where(prompts.of_features, prompts.tokens, ABSENT),
        language_model.vocabulary,
        read,
    )
    pooled = language_model.pool(states, prompts.mask)
    return Text(states, prompts.mask, pooled, prompts.hashes, prompts.spoken, tokens)
