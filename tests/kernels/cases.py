# SPDX-License-Identifier: Apache-2.0
"""Random groups of tables and batches, and every implementation of the operators by name."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor

from deltarec_kernels import Optimizer, Tables, TableShard

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

_OPERATORS = {
    "lookup": {"_lookup": "lookup", "_weights_gradient": "lookup_weights_gradient"},
    "update": {
        "_group_rows": "group_rows",
        "_update": "update",
        "_update_rows": "update_rows",
        "_update_step": "update_step",
    },
    "fake_quantise": {
        "_fake_quantise": "fake_quantise",
        "_backward_operator": "fake_quantise_backward",
    },
}


@contextmanager
def implementation(kind: str) -> Iterator[None]:
    """Let the public functions call `reference`, `compiled` or `triton`."""
    with ExitStack() as stack:
        for package, operators in _OPERATORS.items():
            module = import_module(f"deltarec_kernels.{package}")
            for attribute, name in operators.items():
                if kind == "compiled":
                    function = getattr(torch.ops.deltarec, name)
                elif kind == "triton" and name != "group_rows":
                    function = getattr(import_module(f"deltarec_kernels.{package}.triton"), name)
                else:
                    function = getattr(import_module(f"deltarec_kernels.{package}.reference"), name)
                stack.enter_context(mock.patch.object(module, attribute, function))
        yield


def device_of(kind: str) -> str:
    """Where an implementation's tensors are: Triton's on a GPU if there is one."""
    return TRITON_DEVICE if kind == "triton" else "cpu"


@dataclass
class Case:
    """One group of tables and one batch; `tables()` makes it afresh, equal every time."""

    shards: list[TableShard]
    features: list[int]
    bits: int
    batch: int
    index_type: torch.dtype
    pooling: str
    weighted: bool
    seed: int

    def tables(
        self, optimizer: str = "sgd", step_optimizer: str | None = None, device: str = "cpu"
    ) -> Tables:
        tables = Tables(
            self.shards,
            self.features,
            self.bits,
            Optimizer(optimizer, 0.05),  # type: ignore[arg-type]
            Optimizer(step_optimizer, 0.003) if step_optimizer else None,  # type: ignore[arg-type]
            device,
        )
        generator = torch.Generator().manual_seed(self.seed)
        tables.step.copy_(torch.empty(len(tables.step)).uniform_(0.01, 0.1, generator=generator))
        for index, shard in enumerate(self.shards):
            values = torch.randn(shard.rows, shard.dim, generator=generator) * 0.1
            tables.assign(index, 0, values.to(device), seed=self.seed)
        return tables

    def jagged(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, offsets and weights; bags may be empty, one row takes a third of all ids."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        lengths = torch.randint(0, 7, (len(self.features), self.batch), generator=generator)
        lengths[torch.rand(lengths.shape, generator=generator) < 0.3] = 0
        ids = [torch.zeros(0, dtype=torch.int64)]
        for table, count in zip(self.features, lengths.sum(1).tolist(), strict=True):
            part = torch.randint(0, self.shards[table].rows, (count,), generator=generator)
            part[torch.rand(count, generator=generator) < 0.3] = self.shards[table].rows - 1
            ids.append(part)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
        values = torch.cat(ids)
        weights = torch.randn(len(values), generator=generator) if self.weighted else None
        if weights is not None:
            weights = weights.to(device)
        return values.to(device, self.index_type), offsets.to(device, self.index_type), weights

    def gradient(self, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randn(like.shape, generator=generator).to(like)


@st.composite
def cases(draw: Any, most: int = 5) -> Case:
    """Up to `most` samples; the interpreter of Triton needs few."""
    pooling, weighted = draw(
        st.sampled_from([("sum", False), ("sum", True), ("mean", False), ("none", False)])
    )
    widths = st.sampled_from([1, 3, 8, 10, 16, 24, 64, 72, 128, 136])
    width = draw(widths)
    shards = []
    for index in range(draw(st.integers(1, 3))):
        dim = width if pooling == "none" else draw(widths)
        blocks = [None] + [b for b in (8, 24, 64) if dim % b == 0]
        shards.append(
            TableShard(
                rows=draw(st.integers(1, 6 * most)),
                dim=dim,
                key=7 * index + 1,
                column_block=draw(st.sampled_from(blocks)),
                row_offset=draw(st.sampled_from([0, 5, 2**32 - 3])),
                column_offset=draw(st.sampled_from([0, 64])),
            )
        )
    table = st.integers(0, len(shards) - 1)
    return Case(
        shards=shards,
        features=draw(st.lists(table, min_size=1, max_size=min(4, most))),
        bits=draw(st.sampled_from([8, 4, 2])),
        batch=draw(st.integers(0, most)),
        index_type=draw(st.sampled_from([torch.int32, torch.int64])),
        pooling=pooling,
        weighted=weighted,
        seed=draw(st.integers(0, 2**20)),
    )
