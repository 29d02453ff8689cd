# SPDX-License-Identifier: Apache-2.0
"""The cut of MovieLens-1M of CoLLM (Zhang et al., 2023) in its own splits, with an item table."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from deltarec.data.prepare.collm import ORIGIN
from deltarec.data.prepare.dataset import SPLITS, Dataset, require, write_split
from deltarec.data.prepare.movie_items import missing_texts, write_items
from deltarec.data.prepare.movielens1m import read_raw


class CoLLMText(Dataset):
    """CoLLM's ML-1M: train, validation and test by time, and CoLLM's own flag of what is warm."""

    dataset: Literal["collm-ml-1m-text"] = "collm-ml-1m-text"
    movielens: str | None = None
    """Folder of MovieLens-1M, for the year, the genres and, where it has them, the plots of the
    movies; they are found by their titles. CoLLM's files have titles alone."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        splits = {
            name: pd.read_parquet(require(source / f"{name}.parquet", ORIGIN)) for name in SPLITS
        }
        for name, rows in splits.items():
            write_split(target, name, len(rows), [_columns(rows)])
        items = pd.read_parquet(require(source / "items.parquet", ORIGIN)).set_index("iid")
        if self.movielens is not None:
            movies = read_raw(Path(self.movielens)).movies.drop_duplicates("title")
            items = items.join(movies.set_index("title"), on="title")
        items.index.name = "item"
        write_items(target, items)
        users = max(rows["uid"].to_numpy().max() for rows in splits.values())
        return {
            "table_sizes": {"user": int(users) + 1, "item": int(items.index.to_numpy().max()) + 1},
            "notes": [
                "history holds the items that the user liked before, oldest first",
                "warm is 1 where both user and item are in train",
                "items/ has one row for each movie, with its texts",
                *missing_texts(items),
            ],
        }


def _columns(rows: pd.DataFrame) -> pa.Table:
    # Each history begins with 0, which is no item.
    history = pa.array([items[1:].tolist() for items in rows["his"]], pa.list_(pa.int64()))
    return pa.table(
        {
            "user": rows["uid"].to_numpy("int64"),
            "item": rows["iid"].to_numpy("int64"),
            "history": history,
            "label": rows["label"].to_numpy("int8"),
            "warm": rows["not_cold"].to_numpy("int8"),
        }
    )
