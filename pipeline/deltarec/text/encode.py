# SPDX-License-Identifier: Apache-2.0
"""`deltarec text encode`: text of items or users to vectors, by a frozen encoder, in Parquet.

`OUTPUT/vectors/` has one row for each row with any text: its key, and `vector`, a list of fixed
length. It is written in *parts* of so many rows, each of which gets its name when it is on the
disk; a job that was killed goes on after those that are there. Which texts are encoded together
follows from the part alone, so a resumed job writes what an undisturbed one writes, bit for bit.

With `codes`, `OUTPUT/codes/` has for each of these rows its semantic id (`residual.py`): `codes`,
one number from 1 on for each level.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.progress import Progress
from deltarec.text.encoder import Encoder, EncoderConfig
from deltarec.text.made_tables import begin_folder, lists_by_key, made_with, write_table
from deltarec.text.residual import ResidualConfig, residual_codes
from deltarec.text.rows import TextRows, as_text
from deltarec.text.template import Budget, Renderer, Template, load_template


class EncodeJob(Config):
    """One YAML file of `deltarec text encode`."""

    rows: TextRows
    """Items or users to encode; those without any text have no vector."""
    template: Template | str
    """Their text, or a YAML file that has it; without `{history}`."""
    encoder: EncoderConfig
    """What makes the vectors."""
    output: str
    """Folder to write."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Of the vectors in the files."""
    rows_per_part: int = Field(default=4096, gt=0)
    """What a job that is killed loses at most."""
    codes: ResidualConfig | None = None
    """Whether to make semantic ids too."""

    @model_validator(mode="after")
    def _consistent(self) -> "EncodeJob":
        template = load_template(self.template)
        if template.event is not None:
            raise ValueError(f"template {template.name}: {{history}} is for text augment")
        return self


class Encoded(TypedDict):
    """What `text encode` has done."""

    rows: int
    empty: int
    """Rows without text."""
    truncated: int
    encoded: int
    """Rows, not counting what was there."""
    parts: int
    dim: int
    output: str
    codes: NotRequired[dict[str, float]]
    """What `residual_codes` found."""


def encode(job: EncodeJob) -> Encoded:
    """Encode all rows that have no vector in the output yet.

    Raises:
        ValueError: the job, its files, the encoder or what the output holds is not as needed.
    """
    template = load_template(job.template)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(job.encoder, device)
    texts, empty = texts_of(job.rows, template, job.encoder.model)
    keys = list(texts)
    folder = Path(job.output, "vectors")
    identity = _identity(job, template, encoder, texts)
    begin_folder(Path(job.output), "_encode.json", identity, "vectors")
    folder.mkdir(exist_ok=True)
    starts = range(0, len(keys), job.rows_per_part)
    progress = Progress("encode", len(keys))
    encoded = truncated = 0
    for part, start in enumerate(starts):
        chosen = keys[start : start + job.rows_per_part]
        path = folder / f"part-{part:05}.parquet"
        if not path.is_file():
            vectors, cut = _encode_part(encoder, [texts[key] for key in chosen])
            table = lists_by_key(job.rows.key, chosen, "vector", vectors, job.dtype)
            write_table(table, path, {**identity, "truncated": cut})
            encoded += len(chosen)
        truncated += made_with(pq.read_schema(path))["truncated"]
        progress.update(len(chosen), f"{truncated} cut to {job.encoder.max_tokens} tokens")
    progress.close()
    answer: Encoded = {
        "rows": len(keys) + empty,
        "empty": empty,
        "truncated": truncated,
        "encoded": encoded,
        "parts": len(starts),
        "dim": encoder.dim,
        "output": job.output,
    }
    if job.codes is not None:
        answer["codes"] = _write_codes(job, job.codes, identity)
    return answer


def texts_of(rows: TextRows, template: Template, tokenizer: str) -> tuple[dict[int, str], int]:
    """The text of each row that has any, by key; and the number of the others.

    Only the limits of columns cut it, which count the tokens of a tokenizer's folder or package.

    Raises:
        ValueError: the files are not as needed, or no row has any text.
    """
    table = rows.read(template.columns)
    columns = {name: as_text(table[name]) for name in template.columns}
    budget = Budget(tokens=2**31, tokenizer=tokenizer if template.limits else None)
    renderer = Renderer(template, budget)
    texts: dict[int, str] = {}
    for row, key in enumerate(table[rows.key].to_pylist()):
        values = {name: column[row] for name, column in columns.items()}
        if any(value is not None for value in values.values()):
            texts[key] = renderer.render(values).text
    if not texts:
        raise ValueError(f"{rows.source}: no row has any text in {', '.join(columns)}")
    return texts, len(table) - len(texts)


def _identity(
    job: EncodeJob, template: Template, encoder: Encoder, texts: dict[int, str]
) -> dict[str, Any]:
    content = json.dumps(list(texts.items()), ensure_ascii=False).encode()
    return {
        "template": template.identity,
        "encoder": encoder.identity,
        "dtype": job.dtype,
        "batch_size": job.encoder.batch_size,
        "rows_per_part": job.rows_per_part,
        "texts": hashlib.sha256(content).hexdigest(),
    }


def _encode_part(encoder: Encoder, texts: list[str]) -> tuple[np.ndarray, int]:
    """Vectors `[texts, dim]`, and how many texts were cut; texts of like length go together."""
    lengths = [len(tokens) for tokens in encoder.tokens(texts)]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    vectors = torch.empty(len(texts), encoder.dim)
    size = encoder.config.batch_size
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        vectors[rows] = encoder.encode([texts[row] for row in rows])
    if not vectors.isfinite().all():
        raise ValueError(
            f"encoder.compute: {encoder.config.compute} gives values that are not finite; take fp32"
        )
    return vectors.numpy(), sum(length > encoder.config.max_tokens for length in lengths)


def _write_codes(
    job: EncodeJob, config: ResidualConfig, identity: dict[str, Any]
) -> dict[str, float]:
    table = pq.read_table(Path(job.output, "vectors"), columns=[job.rows.key, "vector"])
    flat = table["vector"].combine_chunks().flatten().to_numpy()  # pyright: ignore
    vectors = torch.from_numpy(flat.reshape(len(table), -1).astype(np.float32))
    codes, found = residual_codes(vectors, config)
    folder = Path(job.output, "codes")
    folder.mkdir(exist_ok=True)
    keys = table[job.rows.key].to_pylist()
    rows = lists_by_key(job.rows.key, keys, "codes", codes.numpy(), "int32")
    identity = {**identity, "codes": config.model_dump(mode="json")}
    write_table(rows, folder / "part-00000.parquet", identity)
    return found
