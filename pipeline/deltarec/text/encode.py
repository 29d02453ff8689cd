# SPDX-License-Identifier: Apache-2.0
"""`deltarec text encode`: text of items or users to vectors, by a frozen encoder, in Parquet.

`OUTPUT/vectors/` has one row for each row with any text: its key, and `vector`, a list of fixed
length; beside them what text that was (`stored_vectors.py`). It is written in *parts* of so many
rows, each of which gets its name when it is on the disk; a job that was killed goes on after those
that are there, and writes what an undisturbed one writes, bit for bit. A job over rows that have
changed since encodes the texts that have no vector yet: what is known by content is taken over.

With `codes`, `OUTPUT/codes/` has for each of these rows its semantic id (`residual.py`): `codes`,
one number from 1 on for each level. The centres stay in `OUTPUT/centres/`, so that a row keeps its
codes when others are added.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator
from typing_extensions import TypedDict

from deltarec.config import Config
from deltarec.progress import Progress
from deltarec.text.encoder import Encoder, EncoderConfig
from deltarec.text.made_tables import begin_folder, lists_by_key, made_with, write_table
from deltarec.text.residual import Centres, ResidualConfig, fit, residual_codes
from deltarec.text.rows import TextRows, as_text
from deltarec.text.stored_vectors import TEXT, TOKENS, StoredVectors, Vector, chunks, hash_of
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
    """Texts, not counting what was known."""
    removed: int
    """Rows of an earlier job that are gone, or have another text now."""
    parts: int
    dim: int
    output: str
    codes: NotRequired[dict[str, float]]
    """What `residual_codes` found."""


def encode(job: EncodeJob, encoder: Encoder | None = None) -> Encoded:
    """Encode all texts that have no vector in the output yet.

    Args:
        job: what to encode.
        encoder: the job's, where it is loaded already.

    Raises:
        ValueError: the job, its files, the encoder or what the output holds is not as needed.
    """
    template = load_template(job.template)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder or Encoder(job.encoder, device)
    texts, empty = texts_of(job.rows, template, job.encoder.model)
    identity = {
        "template": template.identity,
        "encoder": encoder.identity,
        "dtype": job.dtype,
        "columns": [job.rows.key, "vector", TEXT, TOKENS],
    }
    begin_folder(Path(job.output), "_encode.json", identity, "vectors")
    hashes = {key: hash_of(text) for key, text in texts.items()}
    stored = StoredVectors(Path(job.output, "vectors"), job.rows.key, hashes)
    encoded = _encode_missing(job, encoder, texts, hashes, stored, identity)
    answer: Encoded = {
        "rows": len(texts) + empty,
        "empty": empty,
        "truncated": 0,
        "encoded": encoded,
        "removed": stored.remove_stale(),
        "parts": len(stored.parts),
        "dim": encoder.dim,
        "output": job.output,
    }
    answer["truncated"] = stored.longer_than(job.encoder.max_tokens)
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


def _encode_missing(
    job: EncodeJob,
    encoder: Encoder,
    texts: dict[int, str],
    hashes: dict[int, bytes],
    stored: StoredVectors,
    identity: dict[str, Any],
) -> int:
    """Add parts for the rows without a vector; returns how many texts the encoder has seen."""
    counts = Counter(hashes[key] for key in stored.missing)
    known = stored.of_texts(counts.keys())
    progress = Progress("encode", len(texts), len(texts) - len(stored.missing))
    encoded = 0
    for chosen in chunks(stored.missing, job.rows_per_part):
        new = {hashes[key]: texts[key] for key in chosen if hashes[key] not in known}
        made = dict(zip(new, _encode(encoder, list(new.values())), strict=True))
        stored.add({key: hashes[key] for key in chosen}, known | made, job.dtype, identity)
        known |= {text: vector for text, vector in made.items() if counts[text] > 1}
        encoded += len(new)
        progress.update(len(chosen), f"{encoded} texts")
    progress.close()
    return encoded


def _encode(encoder: Encoder, texts: list[str]) -> list[Vector]:
    """The vectors of a part's texts, of which those of like length go together."""
    if not texts:
        return []
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
    return list(zip(vectors.numpy(), lengths, strict=True))


def _write_codes(
    job: EncodeJob, config: ResidualConfig, identity: dict[str, Any]
) -> dict[str, float]:
    """Write the codes of all rows, by the centres of an earlier job where there are such."""
    table = pq.read_table(Path(job.output, "vectors"), columns=[job.rows.key, "vector"])
    vectors = torch.from_numpy(_lists(table["vector"]))
    identity = {**identity, "codes": config.model_dump(mode="json")}
    path = Path(job.output, "centres", "part-00000.parquet")
    if path.is_file() and made_with(pq.read_schema(path)) == identity:
        flat = torch.from_numpy(_lists(pq.read_table(path)["centre"]))
        centres = Centres(flat[0], flat[1:].unflatten(0, (config.levels, config.size)))
    else:
        centres = fit(vectors, config)
        flat = torch.cat([centres.mean.unsqueeze(0), centres.levels.flatten(0, 1)]).numpy()
        path.parent.mkdir(exist_ok=True)
        number = list(range(len(flat)))
        write_table(lists_by_key("number", number, "centre", flat, "fp32"), path, identity)
    codes, found = residual_codes(vectors, centres)
    folder = Path(job.output, "codes")
    folder.mkdir(exist_ok=True)
    keys = table[job.rows.key].to_pylist()
    rows = lists_by_key(job.rows.key, keys, "codes", codes.numpy(), "int32")
    write_table(rows, folder / "part-00000.parquet", identity)
    return found


def _lists(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of one length, float32 `[rows, length]`."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)  # pyright: ignore
    return flat.reshape(len(column), -1).astype(np.float32)
