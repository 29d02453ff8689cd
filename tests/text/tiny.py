# SPDX-License-Identifier: Apache-2.0
"""A tiny random transformer with a tokenizer of bytes, saved as a folder: nothing to download."""

from pathlib import Path
from typing import Any

import torch

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def save_tiny_encoder(folder: Path) -> Path:
    """BERT of two layers and 16 columns; a token is one byte of UTF-8, at most 64 of them."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = BertConfig(vocab_size=_save_bytes(folder), **SHAPE)
    BertModel(shape).save_pretrained(folder)
    return folder


def save_tiny_decoder(folder: Path) -> Path:
    """Llama of two layers and 16 columns with the same tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=_save_bytes(folder), **SHAPE)
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def _save_bytes(folder: Path) -> int:
    """Save a tokenizer of bytes; returns the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(vocabulary)
