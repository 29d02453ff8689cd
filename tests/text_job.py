# SPDX-License-Identifier: Apache-2.0
"""The small job with vectors of text beside its ids: of items, of their histories, of users."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.job import Job
from tests.small_job import CONFIG, small_job

DIM = 12
CODES = {"levels": 3, "size": 7}


def write_vectors(folder: Path) -> None:
    """Vectors of items 0 to 99 but 13, in two files and no order; of users; codes of items.

    The first column tells even ids from odd ones.
    """
    random = np.random.default_rng(0)
    for name, rows, missing in (("item", 100, [13]), ("user", 200, [])):
        keys = random.permutation([key for key in range(rows) if key not in missing])
        vectors = random.normal(size=(len(keys), DIM)).astype(np.float16)
        vectors[:, 0] = 2 * (keys % 2) - 1
        write_lists(folder / f"{name}_text/0.parquet", keys[:60], vectors[:60])
        write_lists(folder / f"{name}_text/1.parquet", keys[60:], vectors[60:])
    codes = random.integers(1, CODES["size"] + 1, (99, CODES["levels"]), dtype=np.int32)
    write_lists(folder / "item_codes/0.parquet", np.arange(1, 100), codes, "codes")


def write_lists(path: Path, keys: Any, values: np.ndarray, column: str = "vector") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    pq.write_table(pa.table({"id": pa.array(keys, pa.int64()), column: lists}), path)


def vectors_of(folder: Path, name: str, rows: int) -> np.ndarray:
    """The table as it should be, float32 `[rows, DIM]`, zeros where there is no vector."""
    table = pq.read_table(folder / f"{name}_text")
    found = np.zeros((rows, DIM), np.float32)
    found[table["id"].to_numpy()] = np.stack(table["vector"].to_pylist())
    return found


def text_job(folder: Path, **overrides: Any) -> Job:
    """`item_text` and the sequence `read` share a frozen table; `user_text` has another one."""
    tables = {
        f"{name}_text": {
            "rows": rows,
            "dim": DIM,
            "frozen": {"source": str(folder / f"{name}_text"), "key": "id"},
        }
        for name, rows in (("item", 100), ("user", 200))
    }
    features = {
        "item_text": {"kind": "id", "column": "item"},
        "user_text": {"kind": "id", "column": "user"},
        "read": {
            "kind": "sequence",
            "column": "history",
            "table": "item_text",
            "target": "item_text",
            "max_length": 10,
        },
    }
    both = {
        "features": {**CONFIG["features"], **features},
        "embedding__tables": {**CONFIG["embedding"]["tables"], **tables},
        "model__text": {"name": "mlp", "dim": 8, "dropout": 0.2, "hidden": [8]},
    }
    return small_job(folder, **(both | overrides))
