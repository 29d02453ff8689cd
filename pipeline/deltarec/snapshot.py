# SPDX-License-Identifier: Apache-2.0
"""A job's tensors as they are at one moment, copied between the steps that follow it.

Tables are updated in place inside backward, so what is written in the background must be a copy;
and to copy gigabytes at once would stop training for seconds. So only small tensors are copied at
once. Tables are copied piece by piece, a little after each step. What changes meanwhile is known
beforehand: the rows that a forward looks up are those that its backward updates. Until a table is
copied, every forward puts aside the rows it looks up, as they are: weights, codes, steps and the
optimiser's state. In the end these are laid over the copy, the latest first, so that every row is
as it was at the moment.

Not chosen: a copying thread, which takes a core from the training beside it (5.6 times as long a
step on two cores); and `fork`, whose copy on write costs a page of 4 KiB for a row of 64 bytes, in
a process full of threads. Tables on a GPU are copied at once: its memory is fast.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.types import Shard, ShardedTensor

from deltarec.embeddings.table_kernels import TableKernel, table_kernels

PIECE_BYTES = 4 << 20
"""What is copied between two looks at the clock."""


class Snapshots:
    """Takes snapshots of a model, one at a time.

    Args:
        model: whose look-ups are watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kernels: list[TableKernel] = []
        self._snapshot: Snapshot | None = None
        for module, kernel in table_kernels(model):
            if all(t.device.type == "cpu" for tensors in kernel.tables for t in tensors):
                self._kernels.append(kernel)
                module.register_forward_pre_hook(self._before(kernel), with_kwargs=True)

    def take(self, tensors: dict[str, Any]) -> "Snapshot":
        """Begin a snapshot; the one before must be complete.

        Args:
            tensors: nested dictionaries of tensors, of which those of the tables may be sharded.
        """
        assert self._snapshot is None or self._snapshot.is_copied
        self._snapshot = Snapshot(tensors, self._kernels)
        return self._snapshot

    def before_write(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        """Must be called before rows int64 `[n]` are written to by other than a training step.

        Args:
            tensors: of one table, all that are about to change.
            rows: of this rank's part.
        """
        if self._snapshot is not None and not self._snapshot.is_copied:
            self._snapshot.keep(tensors, rows)

    def _before(self, kernel: TableKernel) -> Callable[..., None]:
        def put_aside(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            snapshot = self._snapshot
            if snapshot and not snapshot.is_copied and torch.is_grad_enabled():
                snapshot.put_aside(kernel, *kernel.ids_of(arguments, named))

        return put_aside


class Snapshot:
    """The tensors of one moment.

    Args:
        tensors: what to copy.
        kernels: whose tables may be copied later.
    """

    def __init__(self, tensors: dict[str, Any], kernels: list[TableKernel]) -> None:
        self._later = {
            tensor.data_ptr(): tensor
            for kernel in kernels
            for table in kernel.tables
            for tensor in table
            if tensor.numel()
        }
        self._copies: dict[int, Tensor] = {}
        """Of each tensor that is copied later, by its address."""
        self._aside: list[tuple[Tensor, Tensor, Tensor]] = []
        """Copy, rows int64 `[n]` (some may repeat, with equal values), values as they were."""
        self._tensors = self._copied(tensors)
        self._not_copied = set(self._copies)
        self._pieces = self._all_pieces()
        self.is_copied = not self._copies

    def put_aside(self, kernel: TableKernel, ids: Tensor, offsets: Tensor) -> None:
        """Keep the rows that a batch is about to update.

        Args:
            kernel: whose tables they belong to.
            ids: `[n]`, the rows looked up, feature after feature.
            offsets: `[features x batch + 1]`, where each sample of each feature begins.
        """
        batch = (offsets.numel() - 1) // len(kernel.features)
        bounds = offsets[:: max(batch, 1)].tolist()
        for number, table in enumerate(kernel.tables):
            waiting = [t for t in table if t.data_ptr() in self._not_copied]
            if not waiting:
                continue
            own = [f for f, of in enumerate(kernel.features) if of == number]
            rows = torch.cat([ids[bounds[f] : bounds[f + 1]] for f in own]).long()
            self.keep(waiting, rows)

    def keep(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        """Put rows int64 `[n]` of several tensors aside, as they are, where they are not copied."""
        for tensor in tensors:
            if tensor.data_ptr() in self._not_copied:
                copy = self._copies[tensor.data_ptr()].view(tensor.shape)
                self._aside.append((copy, rows, tensor.detach().index_select(0, rows)))

    def copy_for(self, seconds: float) -> bool:
        """Copy tables for about so long; returns whether all are copied."""
        end = time.perf_counter() + seconds
        while not self.is_copied and time.perf_counter() < end:
            self.is_copied = next(self._pieces, True)
        return self.is_copied

    def complete(self, beat: Callable[[], None]) -> dict[str, Any]:
        """The tensors of the moment, in the structure of the originals.

        In another thread, if one likes, once all is copied.

        Args:
            beat: called after every piece of work.
        """
        while not self.copy_for(0.1):
            beat()
        while self._aside:
            copy, rows, values = self._aside.pop()
            copy.index_copy_(0, rows, values)
            beat()
        return self._tensors

    def _all_pieces(self) -> Iterator[bool]:
        """Copies a piece each time it is asked; False, as there is more to do."""
        for pointer, copy in self._copies.items():
            original = self._later[pointer].detach().flatten()
            length = PIECE_BYTES // copy.element_size()
            for into, piece in zip(
                copy.flatten().split(length), original.split(length), strict=True
            ):
                into.copy_(piece)
                yield False
            self._not_copied.remove(pointer)

    def _copied(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(item) for key, item in value.items()}
        if isinstance(value, ShardedTensor):
            shards = [
                Shard(self._copied(shard.tensor), shard.metadata) for shard in value.local_shards()
            ]
            return ShardedTensor._init_from_local_shards_and_global_metadata(
                shards, value.metadata(), process_group=value._process_group
            )
        copy = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format)
        later = self._later.get(value.data_ptr())
        if later is not None and later.numel() == value.numel() and value.is_contiguous():
            self._copies[value.data_ptr()] = copy
            return copy
        return copy.copy_(value.detach())
