# SPDX-License-Identifier: Apache-2.0
"""Parquet tables that language models make: each says in its footer what it was made with."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METADATA = b"deltarec.text"
"""Key of a table's footer: what it was made with, as JSON."""


def begin_folder(folder: Path, manifest: str, identity: dict[str, Any], what: str) -> None:
    """Make a folder of parts, or go on in it; a file of the given name says how they are made.

    Raises:
        ValueError: it holds something else, or such things made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / manifest
    if path.is_file():
        there = json.loads(path.read_text())
        differing = [key for key, value in identity.items() if there.get(key) != value]
        if differing:
            raise ValueError(
                f"{folder}: has {what} of another {differing[0]}; give a new folder as output"
            )
        return
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty and has no {what}; give another output")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(identity, indent=2) + "\n")
    partial.replace(path)


def write_table(table: pa.Table, path: Path, made_with: dict[str, Any]) -> None:
    """Write a file that has its name only when it is on the disk."""
    table = table.replace_schema_metadata({METADATA: json.dumps(made_with).encode()})
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    replace_file(partial, path)


def replace_file(partial: Path, target: Path) -> None:
    """Have the disk hold a file, and give it its name."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)


def made_with(schema: pa.Schema) -> dict[str, Any]:
    """What the footer of a file says; empty for a file of others."""
    return json.loads((schema.metadata or {}).get(METADATA, b"{}"))


def lists_by_key(
    key: str,
    keys: list[int],
    name: str,
    values: np.ndarray,
    dtype: Literal["fp16", "fp32", "int32"],
) -> pa.Table:
    """A table of the keys, and of a list of fixed length for each: values `[keys, length]`.

    Raises:
        ValueError: a value is too large for the type.
    """
    kind = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}[dtype]
    with np.errstate(over="ignore"):
        flat = values.astype(kind).reshape(-1)
    if not np.isfinite(flat).all():
        raise ValueError("dtype: a value of a vector is too large for fp16; take fp32")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
    return pa.table({key: pa.array(keys, pa.int64()), name: lists})
