# SPDX-License-Identifier: Apache-2.0
"""A small job of pairwise tasks on shared tables, and data that it can learn from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from deltarec.config import validate
from deltarec.job import Job

USERS, ITEMS, GROUPS = 60, 80, 4
ROWS = {"train": 1500, "valid": 200, "test": 200}
CONFIG: dict[str, Any] = {
    "data": {"source": "", "train": ["train"]},
    "features": {
        "user": {"kind": "id", "optional": True},
        "item": {"kind": "id", "optional": True},
        "friend": {"kind": "id", "table": "user", "optional": True},
        "other": {"kind": "id", "table": "item", "optional": True},
    },
    "tasks": {
        "listen": {"kind": "pairwise", "query": ["user"], "item": ["item"], "negatives": 2},
        "social": {"kind": "pairwise", "query": ["user"], "item": ["friend"]},
        "along": {
            "kind": "pairwise",
            "query": ["item"],
            "item": ["other"],
            "negative_power": 0.75,
        },
    },
    "embedding": {
        "dim": 8,
        "init_std": 0.1,
        "optimizer": {"name": "rowwise_adagrad", "lr": 0.3},
        "tables": {
            "user": {"rows": USERS, "sharding": "row_wise"},
            "item": {"rows": ITEMS, "sharding": "table_wise"},
        },
    },
    "model": {"pair": {"name": "mf"}},
    "train": {"batch_size": 100, "log_every": 1, "seed": 3},
}


def pair_job(folder: Path, **overrides: Any) -> Job:
    """The job on data in `folder`; overrides are `path__to__key=value`."""
    tree = OmegaConf.create({**CONFIG, "data": {**CONFIG["data"], "source": str(folder)}})
    for key, value in overrides.items():
        OmegaConf.update(tree, key.replace("__", "."), value, merge=False, force_add=True)
    return validate(Job, OmegaConf.to_container(tree), "pair_job")


def write_pair_data(folder: Path, behaviours: bool = False) -> None:
    """Users, their items and friends are mostly of one group, that of id modulo `GROUPS`.

    A row belongs to one task and has nulls elsewhere; held-out rows are of the first task. With
    `behaviours`, `other` is an item of a user too.
    """
    for seed, (split, rows) in enumerate(ROWS.items()):
        random = np.random.default_rng(seed)
        task = random.integers(0, 3, rows) if split == "train" else np.zeros(rows, dtype=int)

        def alike(ids: np.ndarray, bound: int, random: np.random.Generator) -> np.ndarray:
            noise = random.integers(0, bound, len(ids))
            return np.where(random.random(len(ids)) < 0.9, noise // 4 * 4 + ids % GROUPS, noise)

        user, item = random.integers(0, USERS, rows), random.integers(0, ITEMS, rows)
        item = np.where(task == 0, alike(user, ITEMS, random), item)
        columns = {
            "user": (user, (task < 2) | behaviours),
            "item": (item, (task == 0) | ((task == 2) & (not behaviours))),
            "friend": (alike(user, USERS, random), task == 1),
            "other": (alike(user if behaviours else item, ITEMS, random), task == 2),
        }
        table = pa.table({n: pa.array(v, mask=~there) for n, (v, there) in columns.items()})
        target = folder / split
        target.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, target / "0.parquet", row_group_size=100)
