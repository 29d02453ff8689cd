# SPDX-License-Identifier: Apache-2.0
"""The small job with titles of its items, as tokens for a language model, and as vectors."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.config import validate
from deltarec.job import Job
from deltarec.text.tokenise import TokeniseJob, tokenise
from tests.small_job import CONFIG, small_job, write_small_data
from tests.text.tiny import save_tiny_decoder, save_tiny_encoder
from tests.text_job import DIM, write_vectors

TITLES = [f"{'even' if item % 2 == 0 else 'odd'} {item}" for item in range(100)]
TITLES[13], TITLES[17] = "", "odd 17 and on"
WIDTH = 8
PROMPT = "Saw {seen} now {title}"
LOSSES = [
    {"name": "contrastive", "dim": 8, "subspaces": 2, "temperature": 0.2},
    {"name": "masked_feature", "rate": 0.3},
    {"name": "masked_token", "rate": 0.3},
]


def write_language_data(folder: Path) -> None:
    """Samples, tiny models `encoder` and `decoder`, and the tokens and vectors of 99 titles."""
    write_small_data(folder)
    write_vectors(folder)
    save_tiny_encoder(folder / "encoder")
    save_tiny_decoder(folder / "decoder")
    pq.write_table(pa.table({"id": range(100), "title": TITLES}), folder / "items.parquet")
    tree = {
        "rows": {"source": str(folder / "items.parquet"), "key": "id"},
        "template": {"name": "title", "version": 1, "text": "{title}"},
        "tokenizer": str(folder / "encoder"),
        "max_tokens": WIDTH,
        "output": str(folder / "titles"),
    }
    tokenise(validate(TokeniseJob, tree, "test"))


def language_job(folder: Path, kind: str = "encoder", **overrides: Any) -> Job:
    """Neither aligned nor scored yet: only `title`, `seen` and a language model are there."""
    frozen = {"source": str(folder / "titles/tokens"), "key": "id", "column": "tokens"}
    features = {
        "title": {"kind": "id", "column": "item"},
        "seen": {"kind": "sequence", "column": "history", "table": "title", "max_length": 3},
    }
    table = {"rows": 100, "dim": WIDTH, "frozen": frozen}
    both = {
        "features": {**CONFIG["features"], **features},
        "embedding__tables": {**CONFIG["embedding"]["tables"], "title": table},
        "model__language_model": {
            "model": str(folder / kind),
            "pooling": "mean" if kind == "encoder" else "last",
            "lora": {"rank": 2, "dropout": 0.1},
        },
        "train__batch_size": 40,
        "train__optimizer__language_model": {"dense": {"name": "adamw", "lr": 0.01}},
        "data__valid": [],
    }
    return small_job(folder, **(both | overrides))


def aligned_job(folder: Path, **overrides: Any) -> Job:
    align: Any = {"prompt": PROMPT, "losses": LOSSES}
    return language_job(folder, "encoder", **({"model__align": align} | overrides))


def vector_job(folder: Path, **overrides: Any) -> Job:
    """Aligned with vectors of items instead, without a language model."""
    frozen = {"source": str(folder / "item_text"), "key": "id"}
    both = {
        "features": {**CONFIG["features"], "vector": {"kind": "id", "column": "item"}},
        "embedding__tables": {
            **CONFIG["embedding"]["tables"],
            "vector": {"rows": 100, "dim": DIM, "frozen": frozen},
        },
        "model__align": {"vectors": ["vector"], "losses": LOSSES[:2]},
        "data__valid": [],
    }
    return small_job(folder, **(both | overrides))
