# SPDX-License-Identifier: Apache-2.0
"""Decoded rows in columns of NumPy arrays: what lies between Arrow and a `Batch`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """A column of lists: `values [sum of lengths]`, `lengths [rows]`, weights like the values.

    Of lists of lists, they are those of all values of a row, and `inner` has the list of the inner
    lists' lengths for each row.
    """

    values: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray | None = None
    inner: "Ragged | None" = None

    def take(self, rows: np.ndarray) -> "Ragged":
        ends = np.cumsum(self.lengths)
        lengths = self.lengths[rows]
        source_starts = (ends - self.lengths)[rows]
        target_starts = np.cumsum(lengths) - lengths
        index = np.arange(lengths.sum()) + np.repeat(source_starts - target_starts, lengths)
        weights = None if self.weights is None else self.weights[index]
        inner = None if self.inner is None else self.inner.take(rows)
        return Ragged(self.values[index], lengths, weights, inner)

    def slice(self, start: int, stop: int) -> "Ragged":
        first = int(self.lengths[:start].sum())
        last = first + int(self.lengths[start:stop].sum())
        weights = None if self.weights is None else self.weights[first:last]
        inner = None if self.inner is None else self.inner.slice(start, stop)
        return Ragged(self.values[first:last], self.lengths[start:stop], weights, inner)

    def blank(self, rows: int) -> "Ragged":
        """So many empty lists of the same types."""
        weights = None if self.weights is None else self.weights[:0]
        inner = None if self.inner is None else self.inner.blank(rows)
        return Ragged(self.values[:0], np.zeros(rows, self.lengths.dtype), weights, inner)

    @staticmethod
    def concat(parts: Sequence["Ragged"]) -> "Ragged":
        weights = [part.weights for part in parts if part.weights is not None]
        inner = [part.inner for part in parts if part.inner is not None]
        return Ragged(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate(weights) if weights else None,
            Ragged.concat(inner) if inner else None,
        )


@dataclass(frozen=True)
class Block:
    """Rows of a dataset, by column name; columns are `[rows]`, tables `[rows, columns]`."""

    flat: dict[str, np.ndarray]
    """What is no feature: `dense [rows, N]`, `labels` and `mask [rows, T]`, `scenario`, `index`,
    and, where they are configured, `user`, `weight`, and `slices [rows, S]`."""
    ids: dict[str, np.ndarray]
    """Features of one id, int64, by name."""
    ragged: dict[str, Ragged]
    """Features of lists of ids, by name."""
    invalid: Counter[str] = field(default_factory=Counter)
    """Values that each policy mended, by `feature.policy`; the part with the first row has all."""

    @property
    def num_rows(self) -> int:
        return len(self.flat["index"])

    def take(self, rows: np.ndarray) -> "Block":
        return Block(
            {name: np.take(column, rows, axis=0) for name, column in self.flat.items()},
            {name: np.take(column, rows) for name, column in self.ids.items()},
            {name: column.take(rows) for name, column in self.ragged.items()},
            self.invalid,
        )

    def slice(self, start: int, stop: int) -> "Block":
        return Block(
            {name: column[start:stop] for name, column in self.flat.items()},
            {name: column[start:stop] for name, column in self.ids.items()},
            {name: column.slice(start, stop) for name, column in self.ragged.items()},
            self.invalid if start == 0 < stop else Counter(),
        )

    def blank(self, index: np.ndarray) -> "Block":
        """Rows without content in the columns of this block, int64 `[rows]` their numbers."""
        rows = len(index)
        flat = {n: np.zeros((rows, *c.shape[1:]), c.dtype) for n, c in self.flat.items()}
        return Block(
            flat | {"index": index},
            {name: np.zeros(rows, column.dtype) for name, column in self.ids.items()},
            {name: column.blank(rows) for name, column in self.ragged.items()},
        )

    @staticmethod
    def concat(blocks: Sequence["Block"]) -> "Block":
        if len(blocks) == 1:
            return blocks[0]
        return Block(
            {n: np.concatenate([b.flat[n] for b in blocks]) for n in blocks[0].flat},
            {n: np.concatenate([b.ids[n] for b in blocks]) for n in blocks[0].ids},
            {n: Ragged.concat([b.ragged[n] for b in blocks]) for n in blocks[0].ragged},
            sum((block.invalid for block in blocks), Counter()),
        )
