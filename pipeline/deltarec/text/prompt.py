# SPDX-License-Identifier: Apache-2.0
"""Prompts: a batch's samples as text, made of tokens and of vectors while a job runs.

    "Seen: {history_text} Will <user> like {item_text} <item>?"

Words stand as they are. `{feature}` is the text of an id, or of each id of a sequence, from a
frozen table of tokens (`tokenise.py`). `<feature>` is a *soft token*: the feature's vector, by an
MLP made one of the language model's embeddings (Zhang et al., CoLLM: Integrating Collaborative
Embeddings into Large Language Models for Recommendation, arXiv 2310.19488, eq. 4 and 5), so that
the model sees what ids have learned.

Tokens of a sample stand without gaps from the left, whatever else is in the batch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deltarec.data.schema import Schema, SequenceFeature
from deltarec.embeddings.collections import Embedded
from deltarec.layers.rows import occurrences
from deltarec.text.language_model import LanguageModel
from deltarec_kernels.splitmix import mix64

ABSENT = -1
SOFT = -2
"""The first soft token of a prompt; the next ones count downwards."""
WIDER = 10
"""CoLLM's hidden layer is so many times as wide as the vector."""


@dataclass(frozen=True)
class Piece:
    """A part of a prompt."""

    kind: Literal["words", "text", "soft"]
    value: str
    """The words, or the name of the feature."""


def parse(prompt: str) -> list[Piece]:
    """The pieces of a prompt, in their order.

    Raises:
        ValueError: it has no feature.
    """
    pieces, end = [], 0
    for found in re.finditer(r"\{(\w+)\}|<(\w+)>", prompt):
        pieces.append(Piece("words", prompt[end : found.start()]))
        pieces.append(Piece("text", found[1]) if found[1] else Piece("soft", found[2]))
        end = found.end()
    if not pieces:
        raise ValueError(f"prompt '{prompt}': has neither {{feature}} nor <feature>")
    pieces.append(Piece("words", prompt[end:]))
    return [piece for piece in pieces if piece.value]


def features_of(prompt: str, kind: Literal["text", "soft"]) -> list[str]:
    """The features of a prompt that are texts, or soft tokens; each once."""
    return list(dict.fromkeys(p.value for p in parse(prompt) if p.kind == kind))


@dataclass(frozen=True)
class Prompts:
    """A batch's samples as text, B of them, of at most T tokens."""

    tokens: Tensor
    """Int64 `[B, T]`: tokens, `ABSENT` after the last one, soft tokens below that."""
    of_features: Tensor
    """Bool `[B, T]`: which are from texts of features."""
    embeddings: Tensor
    """Float32 `[B, T, D]`."""

    @property
    def mask(self) -> Tensor:
        """Bool `[B, T]`: where something is; of the first place always, so that none is empty."""
        first = torch.arange(self.tokens.shape[1], device=self.tokens.device) == 0
        return (self.tokens != ABSENT) | first

    @property
    def hashes(self) -> Tensor:
        """Int64 `[B]`, equal for equal tokens."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        mixed = mix64(self.tokens ^ mix64(places))
        return torch.where(self.tokens != ABSENT, mixed, 0).sum(1)

    @property
    def spoken(self) -> Tensor:
        """Bool `[B]`: which samples have any text of a feature, or a soft token."""
        return (self.of_features & (self.tokens >= 0) | (self.tokens <= SOFT)).any(1)


class Prompt(nn.Module):
    """Makes the prompts of a batch.

    Args:
        prompt: as above.
        language_model: that reads it.
        schema: of the features.
        dims: width of each feature's vector; of texts, of the table of tokens.

    Raises:
        ValueError: a prompt may be longer than the model admits.
    """

    def __init__(
        self, prompt: str, language_model: LanguageModel, schema: Schema, dims: Mapping[str, int]
    ) -> None:
        super().__init__()
        pieces = parse(prompt)
        before, after = language_model.frame()
        words = [language_model.words(p.value) if p.kind == "words" else [] for p in pieces]
        self.pieces = [(Piece("words", ""), before), *zip(pieces, words, strict=True)]
        self.pieces.append((Piece("words", ""), after))
        self.soft_names = features_of(prompt, "soft")
        self.soft = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(dims[name], WIDER * dims[name]),
                    nn.ReLU(),
                    nn.Linear(WIDER * dims[name], language_model.dim),
                )
                for name in self.soft_names
            }
        )
        longest = sum(len(tokens) for _, tokens in self.pieces)
        for piece in pieces:
            feature = schema.sparse[piece.value] if piece.kind != "words" else None
            times = feature.max_length if isinstance(feature, SequenceFeature) else 1
            if piece.kind != "words":
                longest += times * (dims[piece.value] if piece.kind == "text" else 1)
        if language_model.max_tokens is not None and longest > language_model.max_tokens:
            raise ValueError(
                f"prompt '{prompt}': may have {longest} tokens, the model admits "
                f"{language_model.max_tokens}; lower max_tokens of text tokenise, or max_length of "
                "a sequence"
            )

    def forward(self, language_model: LanguageModel, found: Embedded, index: Tensor) -> Prompts:
        """The prompts of the samples of an index `[B]`."""
        columns, of_features = [], []
        for piece, words in self.pieces:
            if piece.kind == "text":
                columns.append(self._text(piece.value, found))
            else:
                if piece.kind == "soft":
                    words = [SOFT - self.soft_names.index(piece.value)]
                columns.append(torch.tensor(words, dtype=torch.int64, device=index.device))
                columns[-1] = columns[-1].expand(len(index), len(words))
            of_features.append(torch.full_like(columns[-1], piece.kind == "text", dtype=torch.bool))
        tokens, order = left_aligned(columns)
        embeddings = language_model.embed(tokens.clamp(min=0))
        for number, name in enumerate(self.soft_names):
            vectors = self.soft[name](found.pooled[name].float()).float()
            chosen = (tokens == SOFT - number).unsqueeze(2)
            embeddings = torch.where(chosen, vectors.unsqueeze(1), embeddings)
        return Prompts(tokens, torch.cat(of_features, dim=1).gather(1, order), embeddings)

    def _text(self, name: str, found: Embedded) -> Tensor:
        """The tokens of a feature `[B, …]`, with gaps."""
        if name not in found.sequences:
            return found.pooled[name].round().long() - 1
        sequence = found.sequences[name]
        lengths, width = sequence.lengths, sequence.values.shape[1]
        rows, places = occurrences(lengths, len(sequence.values))
        longest = int(lengths.max()) if len(lengths) else 0
        dense = lengths.new_full((len(lengths), longest, width), ABSENT)
        dense[rows, places] = sequence.values.round().long() - 1
        return dense.flatten(1)


def left_aligned(columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens side by side `[B, any]` without gaps, and where each has stood: `[B, T]` both."""
    tokens = torch.cat(list(columns), dim=1)
    order = (tokens == ABSENT).to(torch.uint8).argsort(dim=1, stable=True)
    order = order[:, : max(1, int((tokens != ABSENT).sum(1).max()))]
    return tokens.gather(1, order), order


def hash_vectors(vectors: Tensor) -> Tensor:
    """Int64 `[B]`, equal for equal vectors float32 `[B, D]`."""
    places = torch.arange(vectors.shape[1], device=vectors.device)
    bits = (vectors + 0.0).contiguous().view(torch.int32).long()  # -0.0 is 0.0
    return mix64(bits ^ mix64(places)).sum(1)
