# SPDX-License-Identifier: Apache-2.0
"""`deltarec text tokenise`: text of items or users to tokens, for a language model inside a job.

`OUTPUT/tokens/` has for each row with any text its key and `tokens`, a list of fixed length: the
tokens' numbers plus one, then zeros. A frozen table of it (fp32, which is exact for whole numbers
up to 2^24) brings a text to whoever looks up its id, sharded and exchanged like vectors; 0 is what
such a table has for an id without text.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.text.encode import texts_of
from deltarec.text.encoder import load_tokenizer
from deltarec.text.made_tables import lists_by_key, write_table
from deltarec.text.rows import TextRows
from deltarec.text.template import Template, load_template


class TokeniseJob(Config):
    """One YAML file of `deltarec text tokenise`."""

    rows: TextRows
    """Items or users with text."""
    template: Template | str
    """Their text, or a YAML file that has it; without `{history}`."""
    tokenizer: str
    """Folder of the language model, or an installed package that has one."""
    max_tokens: int = Field(default=32, gt=0, multiple_of=4)
    """Longer texts lose their end, and are counted; the table's `dim`, so a multiple of 4."""
    output: str
    """Folder to write."""

    @model_validator(mode="after")
    def _consistent(self) -> "TokeniseJob":
        template = load_template(self.template)
        if template.event is not None:
            raise ValueError(f"template {template.name}: {{history}} is for text augment")
        return self


class Tokenised(TypedDict):
    """What `text tokenise` has done."""

    rows: int
    empty: int
    """Rows without text."""
    truncated: int
    longest: int
    """Tokens of a text, before it is cut."""
    dim: int
    output: str


def tokenise(job: TokeniseJob) -> Tokenised:
    """Write the tokens of all rows.

    Raises:
        ValueError: the job, its files or the tokenizer are not as needed.
    """
    template = load_template(job.template)
    tokenizer = load_tokenizer(job.tokenizer)
    texts, empty = texts_of(job.rows, template, job.tokenizer)
    # verbose=False: what is too long is cut, and counted, here
    found = tokenizer(list(texts.values()), add_special_tokens=False, verbose=False)["input_ids"]
    values = np.zeros((len(texts), job.max_tokens), np.int32)
    for row, tokens in enumerate(found):
        kept = tokens[: job.max_tokens]
        values[row, : len(kept)] = np.array(kept, np.int32) + 1
    folder = Path(job.output, "tokens")
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "template": template.identity,
        "tokenizer": vocabulary_digest(tokenizer),
        "max_tokens": job.max_tokens,
    }
    table = lists_by_key(job.rows.key, list(texts), "tokens", values, "int32")
    write_table(table, folder / "part-00000.parquet", identity)
    lengths = [len(tokens) for tokens in found]
    return {
        "rows": len(texts) + empty,
        "empty": empty,
        "truncated": sum(length > job.max_tokens for length in lengths),
        "longest": max(lengths),
        "dim": job.max_tokens,
        "output": str(folder),
    }


def vocabulary_digest(tokenizer: Any) -> str:
    """Tells one tokenizer's numbers from another's."""
    content = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode()).hexdigest()
