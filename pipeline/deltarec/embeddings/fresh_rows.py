# SPDX-License-Identifier: Apache-2.0
"""Rows that get another id: a first vector of its own, and optimisers that know nothing of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import (
    BatchedFusedEmbedding,
    BatchedFusedEmbeddingBag,
)

from deltarec.data.batch import Batch
from deltarec.embeddings.policies import OwnRows
from deltarec.embeddings.quantised_collections import lookup_modules
from deltarec.embeddings.quantised_kernel import QuantisedKernel, table_key
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels.rounding import philox

NORMS_AT_ONCE = 2**16
"""Rows whose weights are copied to find their norms."""
FIRST_VECTORS = 1 << 63
"""What sets the seed of first vectors apart from that of rounding."""


@dataclass(frozen=True)
class _LocalTable:
    """A table's rows on this rank."""

    tensors: Sequence[Tensor]
    """All that is kept by row."""
    write: Callable[[Tensor, Tensor], None]
    """Puts weights float32 `[n, dim]` into rows int64 `[n]`."""
    read: Callable[[Tensor], Tensor]
    """The weights of rows int64 `[n]`, float32 `[n, dim]`."""
    state: Sequence[Tensor]
    """Of the optimisers."""


class FreshRows:
    """Makes the rows that a batch has given to other ids fresh, before its forward.

    Args:
        model: sharded.
        tables: those whose rows are assigned, row-wise sharded.
        seed: of the first vectors.
        before_write: is told of the tensors and rows that are about to change.
    """

    def __init__(
        self,
        model: nn.Module,
        tables: Mapping[str, TableSpec],
        seed: int,
        before_write: Callable[[Sequence[Tensor], Tensor], None],
    ) -> None:
        self.tables = tables
        self.seed = seed
        self.before_write = before_write
        self._local = dict(_local_tables(model, tables, seed)) if tables else {}

    def __call__(self, batch: Batch) -> None:
        """Write first vectors and clear states."""
        for name, (rows, ids) in batch.fresh.items():
            table, local = self.tables[name], self._local[name]
            device = local.tensors[0].device
            assert isinstance(table.assignment, OwnRows)
            std = table.assignment.first_std(table.init_std)
            vectors = first_vectors(name, ids, table.dim, std, self.seed)
            rows, vectors = rows.to(device), vectors.to(device)
            self.before_write(local.tensors, rows)
            with torch.no_grad():
                local.write(rows, vectors)
                for state in local.state:
                    state[rows] = 0

    def norms(self, table: str, rows: Tensor) -> Tensor:
        """Of rows int64 `[n]` of this rank, as they are now: float32 `[n]`."""
        local = self._local[table]
        found = [local.read(part.to(local.tensors[0].device)) for part in rows.split(NORMS_AT_ONCE)]
        return torch.cat([weights.norm(dim=1).cpu() for weights in found] or [torch.empty(0)])


def first_vectors(table: str, ids: Tensor, dim: int, std: float, seed: int) -> Tensor:
    """The vectors that ids start from, normal around 0: float32 `[ids, dim]`.

    They depend on the seed, the table and the id, and neither on the row nor on when it is given.
    Computed in float64: the last bit of a vectorised logarithm depends on its place in the tensor.
    """
    if not std:
        return torch.zeros(len(ids), dim)
    groups = torch.arange(-(-dim // 4))
    low, high = (ids & 0xFFFFFFFF)[:, None], (ids >> 32 & 0xFFFFFFFF)[:, None]
    shape = (len(ids), len(groups))
    key = torch.full(shape, table_key(table))
    counter = (low.expand(shape), high.expand(shape), groups.expand(shape), key)
    words = [(word.double() + 0.5) / 2**32 for word in philox(counter, seed ^ FIRST_VECTORS)]
    normals = []  # Box and Muller: two from two
    for radius, angle in (words[:2], words[2:]):
        length, turn = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
        normals += [length * turn.cos(), length * turn.sin()]
    return torch.stack(normals, 2).flatten(1)[:, :dim].mul(std).float()


def _local_tables(
    model: nn.Module, tables: Mapping[str, TableSpec], seed: int
) -> Iterator[tuple[str, _LocalTable]]:
    for module in dict.fromkeys(lookup_modules(model)):
        if isinstance(module, BatchedFusedEmbedding | BatchedFusedEmbeddingBag):
            names = [table.name for table in module.config.embedding_tables]
            weights: Any = module.emb_module.split_embedding_weights()
            states: Any = module.emb_module.split_optimizer_states() or [()] * len(names)
            for name, weight, state in zip(names, weights, states, strict=True):
                if name in tables:
                    tensors = [weight, *state]
                    yield name, _LocalTable(tensors, _into(weight), _from(weight), list(state))
        elif isinstance(module, QuantisedKernel):
            for name, index, _ in module.shards():
                if name in tables:
                    yield name, _quantised(module, index, tables[name], seed)


def _into(weight: Tensor) -> Callable[[Tensor, Tensor], None]:
    def write(rows: Tensor, vectors: Tensor) -> None:
        weight.detach()[rows] = vectors.to(weight.dtype)

    return write


def _from(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: weight.detach()[rows].float()


def _quantised(kernel: QuantisedKernel, index: int, spec: TableSpec, seed: int) -> _LocalTable:
    tables, quantisation = kernel.tables, spec.quantisation
    assert quantisation is not None
    codes, step = tables.codes_of(index), tables.step_of(index)
    state = list(tables.state_of(index).values())

    def write(rows: Tensor, vectors: Tensor) -> None:
        step[rows] = quantisation.initial_step
        tables.assign(index, rows, vectors, seed)

    def read(rows: Tensor) -> Tensor:
        return tables.values(index, rows)

    return _LocalTable([codes, step, *state], write, read, state)
