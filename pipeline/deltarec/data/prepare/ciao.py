# SPDX-License-Identifier: Apache-2.0
"""Ciao (Tang et al., 2012): what users rated and whom they trust, as pairwise tasks.

Relations of the train split: `user, item` ratings; `user, friend` trust; `item, other` with the
same users, of the train split alone. Held out are the ratings that the `split` of the data says.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require
from deltarec.data.prepare.relations import neighbours, write_relations

ORIGIN = "https://www.cse.msu.edu/~tangjili/trust.html"


class Ciao(Dataset):
    """Ciao, split 80/10/10 as the data say."""

    dataset: Literal["social-ciao"] = "social-ciao"
    seed: int = Field(default=2022, ge=0)
    """Seed of the shuffle."""
    neighbours: int = Field(default=10, ge=1)
    """Most others that an item is paired with."""
    common: int = Field(default=2, ge=1)
    """Users that two paired items share, at least."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        ratings = _read(source, "interactions", ["user", "item", "split"])
        trust = np.unique(_read(source, "trust", ["user", "friend"]), axis=1)
        trust = trust[:, trust[0] != trust[1]]
        sizes = {
            "user": int(max(ratings[0].max(), trust.max())) + 1,
            "item": int(ratings[1].max()) + 1,
        }
        train, valid, test = (ratings[:2, ratings[2] == split] for split in range(3))
        relations = {
            ("user", "item"): (train[0], train[1]),
            ("user", "friend"): (trust[0], trust[1]),
            ("item", "other"): neighbours(
                (train[0], train[1]), sizes["item"], self.neighbours, self.common
            ),
        }
        held_out = {"valid": (valid[0], valid[1]), "test": (test[0], test[1])}
        write_relations(target, relations, held_out, self.seed)
        return {
            "table_sizes": sizes,
            "notes": ["friend holds user ids, other item ids; each row belongs to one relation"],
            "relations": {" ".join(names): len(pair[0]) for names, pair in relations.items()},
        }


def _read(source: Path, name: str, columns: list[str]) -> np.ndarray:
    """Columns of a file, int64 `[columns, rows]`."""
    table = pd.read_parquet(require(source / f"{name}.parquet", ORIGIN))
    return np.stack([np.asarray(table[column], dtype=np.int64) for column in columns])
