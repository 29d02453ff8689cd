# SPDX-License-Identifier: Apache-2.0
"""The tasks' gradients of the rows of tables, from those of the vectors looked up.

A look-up is linear: a row's gradient is the sum over its occurrences, which lie in several features
and on several ranks. The ranks' sums for each row meet on one rank, chosen by a hash.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deltarec.balancing.by_task import ByTask
from deltarec.distributed import exchange, owners, rank

TABLE = 1 << 40
"""The key of a row is the number of its table times this, plus the row."""


@dataclass(frozen=True)
class _Groups:
    """Values by distinct keys, U of them.

    A sum over a group is a pooled look-up of the values, which takes a quarter of `index_add_` on
    CPU.
    """

    keys: Tensor
    """int64 `[U]`, ascending."""
    order: Tensor
    """int64 `[n]`: the values, group after group."""
    starts: Tensor
    """int64 `[U + 1]`: where each group begins there."""

    @classmethod
    def of(cls, keys: Tensor) -> "_Groups":
        """Those of keys int64 `[N]`; values whose key is negative are in none."""
        ascending, order = keys.sort(stable=True)
        distinct, counts = ascending.unique_consecutive(return_counts=True)
        starts = F.pad(counts.cumsum(0), (1, 0))
        known = int((distinct < 0).sum())
        first = int(starts[known])
        return cls(distinct[known:], order[first:], starts[known:] - first)

    def places(self) -> Tensor:
        """The group of each value, int64 `[n]`, if all are in one."""
        groups = torch.arange(len(self.keys), device=self.keys.device)
        by_order = groups.repeat_interleave(self.starts.diff())
        return torch.empty_like(self.order).scatter_(0, self.order, by_order)

    def among(self, chosen: Tensor) -> "_Groups":
        """Of some of the values, bool `[N]`, which are counted anew; groups may be empty."""
        kept = chosen[self.order]
        before = F.pad(kept.long().cumsum(0), (1, 0))
        order = (chosen.long().cumsum(0) - 1)[self.order[kept]]
        return _Groups(self.keys, order, before[self.starts])

    def sums(self, values: Tensor) -> Tensor:
        """Over each group, of `[N, D]`: `[U, D]`."""
        if not len(self.keys):
            return values.new_zeros(0, values.shape[1])
        return F.embedding_bag(
            self.order, values, self.starts, mode="sum", include_last_offset=True
        )


@dataclass(frozen=True)
class Rows:
    """Distinct rows, U of them, and their gradients."""

    keys: Tensor
    """int64 `[U]`, ascending."""
    gradients: Tensor
    """`[U, T, D]`, of the global losses; D is the widest table's."""

    @classmethod
    def of(cls, keys: Sequence[Tensor], gradients: Sequence[ByTask], num_tasks: int) -> "Rows":
        """The sums over this rank's occurrences.

        Args:
            keys: of the vectors of each tensor of the boundary, int64 `[n]`; -1 for no row.
            gradients: of each tensor, `[n, …]`.
            num_tasks: T.
        """
        reached = [(k, found) for k, found in zip(keys, gradients, strict=True) if found.parts]
        widest = max(found.like.shape[1] for found in gradients)
        if not reached:
            return cls(keys[0][:0], gradients[0].like.new_zeros(0, num_tasks, widest))
        groups = _Groups.of(torch.cat([key for key, _ in reached]))
        sums = []
        for task in range(num_tasks):
            there = [task in found.parts for _, found in reached]
            parts = [found.parts[task] for _, found in reached if task in found.parts]
            none = gradients[0].like.new_zeros(0, widest)
            values = torch.cat([none, *(F.pad(p, (0, widest - p.shape[1])) for p in parts)])
            of_task = groups
            if not all(there):
                lengths = torch.tensor([len(key) for key, _ in reached])
                chosen = torch.tensor(there).repeat_interleave(lengths).to(values.device)
                of_task = groups.among(chosen)
            sums.append(of_task.sums(values))
        return cls(groups.keys, torch.stack(sums, dim=1) / dist.get_world_size())

    def owned(self, by: Tensor | None = None) -> "Owned":
        """The rows that this rank owns, summed over all ranks; a collective.

        Args:
            by: the owner of each row, int64 `[U]`; chosen by a hash if not given.
        """
        place = torch.arange(len(self.keys), device=self.keys.device)
        if dist.get_world_size() == 1:
            return Owned(self, place, place, torch.zeros_like(place))
        origin = torch.full_like(self.keys, rank())
        sent = [self.keys, place, origin, self.gradients]
        keys, place, origin, gradients = exchange(sent, owners(self.keys) if by is None else by)
        groups = _Groups.of(keys)
        total = groups.sums(gradients.flatten(1)).view(-1, *gradients.shape[1:])
        return Owned(Rows(groups.keys, total), groups.places(), place, origin)

    def norms(self) -> Tensor:
        """`[T, U]`."""
        return self.gradients.norm(dim=2).T

    def products(self) -> Tensor:
        """Inner products of the tasks' gradients, float64 `[T, T]`."""
        return torch.bmm(self.gradients, self.gradients.mT).double().sum(0)


@dataclass(frozen=True)
class Owned:
    """Rows of all ranks that this one owns, and who has sent them: s times a row of some rank."""

    rows: Rows
    inverse: Tensor
    """int64 `[s]`, places among the rows."""
    place: Tensor
    """int64 `[s]`, places among the sender's rows."""
    origin: Tensor
    """int64 `[s]`, the sender."""

    def send_back(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Tell those who sent the rows something of each task, `[T, rows]`; a collective.

        Returns:
            The same `[T, U]` of the rows that this rank has sent; bool `[U]`, true on one of the
            ranks that have sent the row.
        """
        # Rows come in the order of the ranks that sent them: the first of equal ones is counted.
        order = self.inverse.argsort(stable=True)
        first = torch.ones_like(self.inverse)
        first[order[1:]] = (self.inverse[order[1:]] != self.inverse[order[:-1]]).long()
        place, values = self.place, values.T[self.inverse]
        if dist.get_world_size() > 1:
            place, values, first = exchange([place, values, first], self.origin)
        back = place.argsort()
        return values[back].T, first[back].bool()


@dataclass(frozen=True)
class RowWeights:
    """The weights of the rows that this rank has looked up, U of them."""

    keys: Tensor
    """int64 `[U]`, ascending."""
    weights: Tensor
    """`[T, U]`"""

    def at(self, keys: Tensor) -> Tensor:
        """Those of rows by their keys, `[n]` to `[T, n]`; 0 for the key -1."""
        if not len(self.keys):
            return self.weights.new_zeros(len(self.weights), len(keys))
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.weights[:, place] * (self.keys[place] == keys)
