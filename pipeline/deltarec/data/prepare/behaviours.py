# SPDX-License-Identifier: Apache-2.0
"""Views, carts and purchases of Taobao and of RetailRocket, as pairwise tasks of one user table.

The train split has a file for each behaviour, with columns `user, view, cart, buy`: a row has the
item in the column of its behaviour, and nulls in the others. Held out are purchases. `split: 1` of
the source marks rows of every behaviour: the purchases are the test, the others belong to neither
side. Validation purchases are taken out of the train split, as the test's were: of RetailRocket's
test pairs there are no views and carts either.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require, write_split
from deltarec.data.prepare.relations import table_of

BEHAVIOURS = ("view", "cart", "buy")
"""By their number in the source."""
Events = dict[str, np.ndarray]
"""Columns of int64."""


class Behaviours(Dataset):
    """Events `user, item, behavior, split` of one file."""

    held_out_of_all: ClassVar[bool]
    """Whether the source holds views and carts of a pair out together with its purchase."""

    seed: int = Field(default=2022, ge=0)
    """Seed of the shuffle."""

    @abstractmethod
    def validation(self, source: Path, purchases: Events) -> np.ndarray:
        """Which of the purchases of the train split to validate on, bool `[rows]`."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        events = _read(require(source / "interactions.parquet", self.origin()))
        train = {
            name: _take(events, (events["split"] == 0) & (events["behavior"] == number))
            for number, name in enumerate(BEHAVIOURS)
        }
        test = _take(events, (events["split"] == 1) & (events["behavior"] == len(BEHAVIOURS) - 1))
        chosen = self.validation(source, train["buy"])
        valid = _take(train["buy"], chosen)
        train["buy"] = _take(train["buy"], ~chosen)
        if self.held_out_of_all:
            for name in ("view", "cart"):
                train[name] = _take(train[name], ~np.isin(_keys(train[name]), _keys(valid)))
        random = np.random.default_rng(self.seed)
        for name, rows in train.items():
            shuffled = _take(rows, random.permutation(len(rows["user"])))
            write_split(target, "train", len(rows["user"]), [_table(shuffled, name)], file=name)
        for split, rows in (("valid", valid), ("test", test)):
            write_split(target, split, len(rows["user"]), [_table(rows, "buy")])
        return {
            "table_sizes": {name: int(events[name].max()) + 1 for name in ("user", "item")},
            "notes": [
                "view, cart and buy hold item ids; each row belongs to one behaviour",
                "held-out views and carts are in no split",
            ],
            "train": {name: len(rows["user"]) for name, rows in train.items()},
        }

    @abstractmethod
    def origin(self) -> str:
        """Where the data can be had."""


class MBTaobao(Behaviours):
    """Taobao with the validation purchases of MuLE (Lee et al., 2024), one a user."""

    dataset: Literal["mb-taobao"] = "mb-taobao"
    held_out_of_all: ClassVar[bool] = False

    def origin(self) -> str:
        return "https://github.com/geonwooko/MULE (data/taobao)"

    def validation(self, source: Path, purchases: Events) -> np.ndarray:
        pairs = _read(require(source / "valid_mule.parquet", self.origin()))
        return np.isin(_keys(purchases), _keys(pairs))


class MBRetailRocket(Behaviours):
    """RetailRocket; validated on the last purchase of each user who has two at least."""

    dataset: Literal["mb-retailrocket-behaviours"] = "mb-retailrocket-behaviours"
    held_out_of_all: ClassVar[bool] = True

    def origin(self) -> str:
        return "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset"

    def validation(self, source: Path, purchases: Events) -> np.ndarray:
        order = np.lexsort([purchases[name] for name in ("item", "timestamp", "user")])
        user = purchases["user"][order]
        change = user[1:] != user[:-1]
        chosen = np.empty(len(order), dtype=bool)
        chosen[order] = np.append(change, True) & ~np.append(True, change)
        return chosen


def _read(path: Path) -> Events:
    table = pq.read_table(path)
    return {name: table[name].to_numpy().astype(np.int64) for name in table.column_names}


def _take(events: Events, rows: np.ndarray) -> Events:
    return {name: column[rows] for name, column in events.items()}


def _keys(events: Events) -> np.ndarray:
    """One int64 a pair."""
    return events["user"] << 32 | events["item"]


def _table(events: Events, behaviour: str) -> pa.Table:
    return table_of(("user", *BEHAVIOURS), ("user", behaviour), (events["user"], events["item"]))
