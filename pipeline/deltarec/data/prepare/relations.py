# SPDX-License-Identifier: Apache-2.0
"""Rows of pairwise tasks: each belongs to one relation, and has nulls in the columns of others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from deltarec.data.prepare.dataset import SPLITS, write_split

Pairs = tuple[np.ndarray, np.ndarray]
"""Two columns of ids of equal length."""


def write_relations(
    target: Path,
    relations: Mapping[tuple[str, str], Pairs],
    held_out: Mapping[str, Pairs],
    seed: int,
) -> None:
    """Write the relations as one shuffled train split, and the held-out pairs of the first one.

    Args:
        target: an empty folder.
        relations: by the names of their two columns; relations may share a column.
        held_out: the pairs of `valid` and `test`.
        seed: of the shuffle, so that batches have rows of all relations.
    """
    names = list(dict.fromkeys(name for columns in relations for name in columns))
    train = pa.concat_tables([table_of(names, *item) for item in relations.items()])
    order = np.random.default_rng(seed).permutation(len(train))
    tables = {"train": train.take(order)}
    first = next(iter(relations))
    tables |= {split: table_of(names, first, pairs) for split, pairs in held_out.items()}
    for split in SPLITS:
        write_split(target, split, len(tables[split]), [tables[split]])


def neighbours(pairs: Pairs, num_items: int, most: int, common: int) -> Pairs:
    """Of each item those that are most often with the same users.

    Args:
        pairs: users and items, without repetition.
        num_items: items have ids below this.
        most: neighbours of an item, by the cosine of their sets of users; equals by id.
        common: users that two neighbours have in common, at least.
    """
    user, item = pairs
    shape = (int(user.max()) + 1, num_items)
    matrix = sparse.csr_matrix((np.ones(len(user)), (user, item)), shape=shape)
    users = np.bincount(item, minlength=num_items)
    together: Any = (matrix.T @ matrix).tocoo()
    kept = (together.row != together.col) & (together.data >= common)
    row, other = together.row[kept], together.col[kept]
    cosine = together.data[kept] / np.sqrt(users[row] * users[other])
    order = np.lexsort((other, -cosine, row))
    row, other = row[order], other[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    return row[place < most], other[place < most]


def table_of(names: Sequence[str], columns: tuple[str, str], pairs: Pairs) -> pa.Table:
    """Pairs as the values of two columns of some names; the others are nulls."""
    values = dict(zip(columns, pairs, strict=True))
    rows = len(pairs[0])
    arrays = [
        pa.array(values[name], pa.int32()) if name in values else pa.nulls(rows, pa.int32())
        for name in names
    ]
    return pa.table(dict(zip(names, arrays, strict=True)))
