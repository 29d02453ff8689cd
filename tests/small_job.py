# SPDX-License-Identifier: Apache-2.0
"""A small job with every kind of feature, and data that it can learn from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from deltarec.config import validate
from deltarec.job import Job

CONFIG: dict[str, Any] = {
    "data": {"source": "", "train": ["train"], "valid": ["valid"], "user": "user"},
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "city": {"kind": "id"},
        "country": {"kind": "id"},
        "tags": {"kind": "ids", "pooling": "mean"},
        "scores": {"kind": "ids", "column": "tags", "weights": "tag_weights", "pooling": "sum"},
        "history": {"kind": "sequence", "table": "item", "target": "item", "max_length": 10},
        "price": {"kind": "dense"},
    },
    "tasks": {"click": {}, "buy": {"given": "click", "positive_weight": 2.0}},
    "scenario": {"column": "scenario", "values": ["web", "app"]},
    "embedding": {
        "dim": 8,
        "init_std": 0.1,
        "optimizer": {"name": "rowwise_adagrad", "lr": 0.3},
        "tables": {
            "user": {"rows": 200, "sharding": "row_wise"},
            "item": {"rows": 100, "sharding": "row_wise"},
            "city": {"rows": 50, "sharding": "column_wise", "column_block": 4},
            "country": {"rows": 20, "sharding": "data_parallel"},
            "tags": {"rows": 30, "sharding": "table_wise"},
            "scores": {"rows": 30, "sharding": "row_wise"},
        },
    },
    "model": {
        "sequence": {"name": "din", "hidden": [8]},
        "trunk": {"name": "mlp", "hidden": [16], "norm": "batch", "dropout": 0.2},
        "scenario": {"name": "towers", "hidden": [8]},
        "heads": {"name": "mmoe", "experts": 2, "hidden": [8], "tower": [8]},
    },
    "train": {
        "batch_size": 100,
        "log_every": 1,
        "seed": 3,
        "optimizer": {"dense": {"name": "adam", "lr": 0.01}},
    },
}
SPLITS = {"train": 2000, "valid": 500}


AROUND = {"kind": "sequence", "table": "item", "aligned_with": "history"}
"""A feature for jobs that want one that is aligned."""


def small_job(folder: Path, **overrides: Any) -> Job:
    """The job on data in `folder`; overrides are `path__to__key=value`."""
    tree = OmegaConf.create({**CONFIG, "data": {**CONFIG["data"], "source": str(folder)}})
    for key, value in overrides.items():
        OmegaConf.update(tree, key.replace("__", "."), value, merge=False, force_add=True)
    return validate(Job, OmegaConf.to_container(tree), "small_job")


def write_small_data(folder: Path) -> None:
    """A click is likelier for users and items with even ids, and where the item was seen before."""
    for seed, (split, rows) in enumerate(SPLITS.items()):
        random = np.random.default_rng(seed)
        user, item = random.integers(0, 200, rows), random.integers(0, 100, rows)
        lengths = random.integers(0, 12, rows)
        history = [random.integers(0, 100, n) for n in lengths]
        seen = np.array([i in h for i, h in zip(item, history, strict=True)])
        logit = (user % 2) + (item % 2) - 1.0 + 2.0 * seen
        click = random.random(rows) < 1 / (1 + np.exp(-2 * logit))
        tags = [random.integers(0, 30, random.integers(0, 4)) for _ in range(rows)]
        table = pa.table(
            {
                "user": user,
                "item": item,
                "city": random.integers(0, 50, rows),
                "country": random.integers(0, 20, rows),
                "tags": pa.array(tags, pa.list_(pa.int64())),
                "tag_weights": pa.array([t / 30 for t in tags], pa.list_(pa.float32())),
                "history": pa.array(history, pa.list_(pa.int64())),
                "price": random.normal(size=rows).astype(np.float32),
                "scenario": random.choice(["web", "app"], rows),
                "click": click.astype(np.int8),
                "buy": (click & (random.random(rows) < 0.4)).astype(np.int8),
            }
        )
        around = [[random.integers(0, 100, random.integers(0, 4)) for _ in h] for h in history]
        table = table.append_column("around", pa.array(around, pa.list_(pa.list_(pa.int64()))))
        target = folder / split
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target / "0.parquet", row_group_size=100, write_page_checksum=True)
