# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of what has changed: the rows of tables that were looked up since the one before.

Training changes no other row, so a mark for each row on the rank that owns it, a byte, is all that
must be kept; it is set before each forward. Of a table's tensors (weights, codes, steps, state of
optimisers) an increment has the changed rows alone; everything else it has whole. To restore, the
last whole checkpoint is read and the rows of each increment since are laid over it in turn,
wherever these rows are by now: the numbers of processes may differ.

In the folder of an increment the part of rank R in its G-th piece of a table is

    changed.R_G.rows              int64 [n], the changed rows, counted in the piece
    changed.R_G.ROW_COLUMN.NAME   [n, ...], their values in tensor NAME, in which the piece begins
                                  at ROW and COLUMN

and the file `base` names the checkpoint that it goes on from.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.types import Shard, ShardedTensor

from deltarec import stored_tensors
from deltarec.distributed import rank
from deltarec.embeddings.table_kernels import TableKernel, table_kernels
from deltarec.supervision import Watchdog

BASE = "base"
SECTION = "changed"
PIECE = re.compile(rf"{SECTION}\.(\d+_\d+)\.(\d+)_(\d+)\.(.+)")


class ChangedRows:
    """Marks the rows of a model's tables that change.

    Args:
        model: whose look-ups are watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kernels: list[_Marks] = []
        self._marks: dict[int, Tensor] = {}
        """Of each tensor with a table's rows, by its address."""
        for module, kernel in table_kernels(model):
            marks = _Marks(kernel)
            self._kernels.append(marks)
            module.register_forward_pre_hook(marks.before, with_kwargs=True)
            for table, own in zip(kernel.tables, marks.by_table, strict=True):
                self._marks |= {tensor.data_ptr(): own for tensor in table if tensor.numel()}

    def clear(self) -> None:
        """From now on."""
        for marks in self._kernels:
            marks.all.zero_()

    def mark(self, tensor: Tensor, rows: Tensor) -> None:
        """Note rows that something else than training changes.

        Args:
            tensor: any of a table's on this rank.
            rows: int64 `[n]`, counted in the tensor.
        """
        self._marks[tensor.data_ptr()][rows] = True

    def increment(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """What an increment holds: copies of changed rows, and all that is no table as it is.

        Args:
            tensors: nested dictionaries of tensors, of which those of the tables are sharded.
        """
        groups: dict[int, str] = {}
        rows: dict[str, Tensor] = {}

        def add(name: str, shard: Shard) -> None:
            if not shard.tensor.numel():
                return
            marks = self._marks[shard.tensor.data_ptr()]
            group = groups.setdefault(marks.data_ptr(), f"{rank()}_{len(groups)}")
            changed = rows.setdefault(f"{group}.rows", marks.nonzero().squeeze(dim=1))
            if len(changed):
                row, column = (*shard.metadata.shard_offsets, 0)[:2]
                values = shard.tensor.detach().index_select(0, changed)
                rows[f"{group}.{row}_{column}.{name}"] = values

        def without_tables(value: dict[str, Any], prefix: str) -> dict[str, Any]:
            kept = {}
            for key, item in value.items():
                if isinstance(item, ShardedTensor) and self._is_marked(item):
                    for shard in item.local_shards():
                        add(f"{prefix}{key}", shard)
                elif not isinstance(item, dict):
                    kept[key] = item
                elif inside := without_tables(item, f"{prefix}{key}."):
                    kept[key] = inside
            return kept

        kept = without_tables(tensors, "")
        return kept | ({SECTION: rows} if rows else {})

    def _is_marked(self, tensor: ShardedTensor) -> bool:
        """Whether it is of a table; which id has which row is not, and stands whole."""
        return all(
            shard.tensor.data_ptr() in self._marks
            for shard in tensor.local_shards()
            if shard.tensor.numel()
        )


class _Marks:
    """Of the rows of one kernel's tables."""

    def __init__(self, kernel: TableKernel) -> None:
        device = kernel.tables[0][0].device
        rows = [table[0].shape[0] for table in kernel.tables]
        first = [sum(rows[:table]) for table in range(len(rows))]
        self.kernel = kernel
        self.all = torch.zeros(sum(rows), dtype=torch.bool, device=device)
        self.by_table = self.all.split(rows)
        self.first = torch.tensor([first[table] for table in kernel.features], device=device)
        """Of each feature, the first row of its table."""

    def before(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward comes, and a backward after it if gradients are kept."""
        if not torch.is_grad_enabled():
            return
        ids, offsets = self.kernel.ids_of(arguments, named)
        batch = (offsets.numel() - 1) // len(self.first)
        if not batch or not ids.numel():
            return
        lengths = offsets[::batch].diff()
        first = torch.repeat_interleave(self.first, lengths, output_size=ids.numel())
        self.all[ids.long() + first] = True


def values(tensors: dict[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each tensor of a section: in an increment, also of what changed of it."""
    yield from tensors.get(section, {}).items()
    for name, value in tensors.get(SECTION, {}).items():
        piece = PIECE.fullmatch(f"{SECTION}.{name}")
        if piece and piece[4].startswith(f"{section}."):
            yield piece[4].removeprefix(f"{section}."), value


def chain(source: Path) -> list[Path]:
    """The checkpoints that one is restored from, the whole one first.

    Raises:
        ValueError: one of them is gone.
    """
    found = [source]
    while (base := found[0] / BASE).is_file():
        before = source.parent / base.read_bytes().decode(errors="replace").strip()
        if not before.is_dir() or before in found:
            raise ValueError(
                f"{source}: holds what has changed since {before.name}, which is gone; let "
                "'latest' name another checkpoint, or remove the folder"
            )
        found.insert(0, before)
    return found


def sizes(folders: list[Path]) -> dict[str, torch.Size]:
    """The size of every tensor that `read` can give, by name.

    Args:
        folders: a `chain`.

    Raises:
        ValueError: an index cannot be read.
    """
    found = stored_tensors.sizes(folders[0])
    if len(folders) > 1:
        found = {n: s for n, s in found.items() if not n.startswith("random.")}
        found |= stored_tensors.sizes(folders[-1])
    return {name: size for name, size in found.items() if not name.startswith(f"{SECTION}.")}


def read(
    tensors: dict[str, Tensor | ShardedTensor],
    folders: list[Path],
    watchdog: Watchdog | None = None,
) -> None:
    """Fill tensors, which may be sharded in any way, by name; a collective of all ranks.

    Args:
        tensors: by name, not nested.
        folders: a `chain`.
        watchdog: is told of every piece.

    Raises:
        ValueError: the folders hold no such tensors, or are damaged.
    """
    last = stored_tensors.sizes(folders[-1]) if len(folders) > 1 else {}
    tables = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, ShardedTensor) and name not in last
    }
    others = {n: value for n, value in tensors.items() if n not in tables}
    if tables:
        stored_tensors.read(dict(tables), folders[0], watchdog)
    if others:
        stored_tensors.read(dict(others), folders[-1], watchdog)
    for folder in folders[1:]:
        _lay_over(tables, folder, watchdog)


def _lay_over(tables: dict[str, ShardedTensor], folder: Path, watchdog: Watchdog | None) -> None:
    stored = stored_tensors.sizes(folder)
    matches = (PIECE.fullmatch(name) for name in stored)
    pieces = [piece for piece in matches if piece and piece[4] in tables]
    if not pieces:
        return
    rows = {
        name: torch.empty(stored[name], dtype=torch.int64)
        for name in {f"{SECTION}.{piece[1]}.rows" for piece in pieces}
    }
    values = {
        piece[0]: torch.empty(stored[piece[0]], dtype=tables[piece[4]].dtype) for piece in pieces
    }
    stored_tensors.read({**rows, **values}, folder, watchdog)
    for piece in pieces:
        changed = rows[f"{SECTION}.{piece[1]}.rows"] + int(piece[2])
        for shard in tables[piece[4]].local_shards():
            _put(shard, changed, int(piece[3]), values[piece[0]])


def _put(shard: Shard, rows: Tensor, column: int, values: Tensor) -> None:
    """Write what a shard has of some rows.

    Args:
        shard: of a tensor of one or two dimensions.
        rows: int64 `[n]`, counted in the whole tensor.
        column: where the values begin there.
        values: `[n]` or `[n, columns]`.
    """
    (first, *before), (count, *width) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
    inside = ((rows >= first) & (rows < first + count)).nonzero().squeeze(dim=1)
    target, device = shard.tensor.detach(), shard.tensor.device
    places = (rows[inside] - first).to(device)
    if not before:
        target[places] = values[inside].to(device)
        return
    low = max(column, before[0])
    high = min(column + values.shape[1], before[0] + width[0])
    if low < high:
        part = values[inside, low - column : high - column].to(device)
        target[places, low - before[0] : high - before[0]] = part
