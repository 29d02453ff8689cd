# SPDX-License-Identifier: Apache-2.0
"""The pairs of ids that the rows of a dataset hold: edges of graphs, and what a query has done."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader


def read_pairs(
    reader: Reader, features: Sequence[tuple[str, str]], after_batch: Callable[[Batch], None]
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """By two features of one id, the ids of all rows of the reader's share that have both.

    Args:
        reader: of the data.
        features: by two.
        after_batch: told of each batch that was read.

    Returns:
        Two int64 tensors of equal length each, rows in their order.
    """
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {pair: [] for pair in features}
    none = torch.empty(0, dtype=torch.int64)
    for batch in reader.read(Position(), epochs=1):
        ids = {
            name: batch.ids(name) for name in dict.fromkeys(n for pair in features for n in pair)
        }
        for first, second in features:
            there = (ids[first] >= 0) & (ids[second] >= 0)
            found[first, second].append((ids[first][there], ids[second][there]))
        after_batch(batch)
    return {
        pair: (torch.cat([none, *(a for a, _ in parts)]), torch.cat([none, *(b for _, b in parts)]))
        for pair, parts in found.items()
    }


def count_items(reader: Reader, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """By pairwise task, int64 `[items]`: the rows of the reader's share that have each item."""
    schema = reader.schema
    found = {name: np.zeros(schema.num_items(name), dtype=np.int64) for name in tasks}
    for batch in reader.read(Position(), epochs=1):
        for t, (name, task) in enumerate(schema.tasks.items()):
            if name in found:
                items = batch.ids(task.item[0])[batch.mask[:, t]].numpy()
                found[name] += np.bincount(items, minlength=len(found[name]))
    return found
