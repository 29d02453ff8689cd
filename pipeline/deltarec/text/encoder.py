# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and encoders of the transformers library, from a folder or an installed package."""

from typing import Any


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no tokenizer: {' '.join(str(error).split())}") from error
