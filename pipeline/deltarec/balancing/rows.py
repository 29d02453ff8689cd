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
class Occurrences:
    """What comes to the rows from all looked-up vectors of this rank, a gradient of one task each.

    There are n of them; vectors that a task does not reach are not among them.
    """

    keys: Tensor
    """int64 `[n]`, of the rows."""
    tasks: Tensor
    """int64 `[n]`"""
    gradients: Tensor
    """`[n, D]`, of the global losses; D is the widest table's."""

    @classmethod
    def of(cls, keys: Sequence[Tensor], gradients: Sequence[ByTask]) -> "Occurrences":
        """Those of tensors of the boundary, whose rows have such keys, -1 for none."""
        widest = max(found.like.shape[1] for found in gradients)
        like = gradients[0].like
        parts = [(keys[0][:0], keys[0][:0], like.new_empty(0, widest))]
        for key, found in zip(keys, gradients, strict=True):
            [there] = (key >= 0).nonzero(as_tuple=True)
            for task, part in found.parts.items():
                rows = F.pad(part[there], (0, widest - part.shape[1])) / dist.get_world_size()
                parts.append((key[there], torch.full_like(there, task), rows))
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Rows:
    """Distinct rows, U of them, and their gradients."""

    keys: Tensor
    """int64 `[U]`, ascending."""
    gradients: Tensor
    """`[U, T, D]`"""

    @classmethod
    def of(cls, occurrences: Occurrences, num_tasks: int) -> "Rows":
        """The sums over this rank's occurrences."""
        keys, inverse = occurrences.keys.unique(return_inverse=True)
        dim = occurrences.gradients.shape[1]
        sums = occurrences.gradients.new_zeros(len(keys) * num_tasks, dim)
        sums.index_add_(0, inverse * num_tasks + occurrences.tasks, occurrences.gradients)
        return cls(keys, sums.view(len(keys), num_tasks, dim))

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
        distinct, inverse = keys.unique(return_inverse=True)
        total = gradients.new_zeros(len(distinct), *gradients.shape[1:])
        total.index_add_(0, inverse, gradients)
        return Owned(Rows(distinct, total), inverse, place, origin)

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
