# SPDX-License-Identifier: Apache-2.0
"""A group of quantised tables where TorchRec expects a group of FBGEMM's.

One `QuantisedKernel` holds the parts of all tables on this rank that are trained alike, and serves
and trains them by one call each of `deltarec_kernels`. TorchRec makes it where a table's type is
INT8, INT4 or INT2 (`quantised_collections.py`); the settings arrive with the tables, as FBGEMM's
do: in `fused_params`, by which TorchRec also groups tables.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torchrec.distributed.embedding_kernel import BaseEmbedding
from torchrec.distributed.embedding_types import GroupedEmbeddingConfig
from torchrec.distributed.types import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata
from torchrec.modules.embedding_configs import DataType
from torchrec.optim.fused import FusedOptimizer, FusedOptimizerModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from deltarec.embeddings.frozen import read_rows
from deltarec.embeddings.initialise import initial_rows
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import (
    Batch,
    Optimizer,
    Pooling,
    Rounding,
    Tables,
    TableShard,
    group,
    lookup,
    row_bytes,
    update,
    update_rows,
    update_step,
)

BITS = {DataType.INT8: 8, DataType.INT4: 4, DataType.INT2: 2}
SETTINGS = "deltarec"
"""Key of the settings among a table's `fused_params`."""
ASSIGNED_ROWS = 2**16
"""Rows quantised at a time when a table is initialised."""


@dataclass(frozen=True)
class Settings:
    """How a quantised table is trained; tables of equal settings are trained together."""

    optimizer: Optimizer
    step_optimizer: Optimizer | None
    rounding: Rounding
    two_passes: bool
    batch_factor: float
    """Of the steps' gradient, besides the next."""
    scale_by_columns: bool
    """Whether that gradient is divided by sqrt(columns that share a step x largest code)."""
    column_block: int = field(compare=False)

    @classmethod
    def of(cls, table: TableSpec, seed: int, batch_size: int) -> "Settings":
        """A table's settings; the batch size is that of all ranks together."""
        quantisation = table.quantisation
        assert quantisation is not None
        scale = quantisation.alpt.gradient_scale if quantisation.alpt else "none"
        return cls(
            optimizer=table.optimizer.for_kernels(),
            step_optimizer=quantisation.step_optimizer,
            rounding=Rounding(seed, quantisation.rounding == "stochastic"),
            two_passes=quantisation.two_passes,
            batch_factor=batch_size**-0.5 if scale == "bdq" else 1.0,
            scale_by_columns=scale != "none",
            column_block=table.column_block,
        )


def mark(parameter: nn.Parameter, settings: Settings) -> None:
    """Let TorchRec hand the settings to the kernel that will hold this table.

    These are the attributes by which `apply_optimizer_in_backward` speaks to TorchRec; it cannot be
    used itself, because it knows FBGEMM's optimisers only.
    """
    parameter._optimizer_classes = [None]  # pyright: ignore[reportAttributeAccessIssue]
    parameter._optimizer_kwargs = [{SETTINGS: settings}]  # pyright: ignore[reportAttributeAccessIssue]


class QuantisedKernel(BaseEmbedding, FusedOptimizerModule):
    """Quantised tables of one bit width, pooling and settings, on this rank.

    Args:
        config: the tables, their features and settings.
        pg: of the ranks that share the tables.
        device: where they lie.
        pooling: how ids become vectors.

    Attributes:
        tables: codes, steps, moments.
        number: batches trained before the one under way; keys the rounding.
        second_pass: whether look-ups belong to ALPT's second pass.
        anchor: an empty tensor that requires a gradient, so that backward comes by.
    """

    def __init__(
        self,
        config: GroupedEmbeddingConfig,
        pg: dist.ProcessGroup | None,
        device: torch.device | None,
        pooling: Pooling,
    ) -> None:
        super().__init__()
        self._config = config
        self.settings: Settings = (config.fused_params or {})[SETTINGS]
        self.pooling: Pooling = pooling
        self.number = 0
        self.second_pass = False
        self.anchor = torch.empty(0, device=device, requires_grad=True)
        self._waiting: tuple[Batch, Tensor] | None = None
        shards = []
        features = []
        for index, table in enumerate(config.embedding_tables):
            assert table.local_metadata is not None
            row, column = table.local_metadata.shard_offsets
            own: Settings = (table.fused_params or {})[SETTINGS]
            shards.append(
                TableShard(
                    table.local_rows,
                    table.local_cols,
                    table_key(table.name),
                    min(own.column_block, table.local_cols),
                    row,
                    column,
                )
            )
            features += [index] * table.num_features()
        self.tables = Tables(
            shards,
            features,
            BITS[config.data_type],
            self.settings.optimizer,
            self.settings.step_optimizer,
            device or torch.device("cpu"),
        )
        if not self.settings.scale_by_columns:
            self.tables.gradient_scale.fill_(1)
        self._optimizer = QuantisedOptimizer(self, pg)

    @property
    def config(self) -> GroupedEmbeddingConfig:
        return self._config

    @property
    def fused_optimizer(self) -> FusedOptimizer:
        return self._optimizer

    @property
    def learns_in_second_pass(self) -> bool:
        """Whether a second look-up and backward are due."""
        return self._waiting is not None

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Pooled vectors `[B, sum of widths]`, or one a id `[ids, D]`; trained in backward."""
        jagged = (features.values(), features.offsets(), features.weights_or_none())
        if self.second_pass and not self.learns_in_second_pass:
            return lookup(self.tables, *jagged, self.pooling)
        return _TrainedLookup.apply(self.anchor, self, *jagged)

    def learn(self, ids: Tensor, offsets: Tensor, weights: Tensor | None, gradient: Tensor) -> None:
        """Train the rows of a batch by the gradient to their look-up."""
        settings = self.settings
        gradient = gradient.contiguous()
        if self._waiting is not None:
            batch, updated = self._waiting
            self._waiting = None
            update_step(
                self.tables,
                batch,
                gradient,
                updated,
                self.number,
                settings.rounding,
                settings.batch_factor,
            )
            return
        batch = Batch(group(self.tables, ids, offsets), offsets, weights, self.pooling)
        if settings.two_passes:
            self._waiting = batch, update_rows(self.tables, batch, gradient, self.number)
        else:
            rounding, factor = settings.rounding, settings.batch_factor
            update(self.tables, batch, gradient, self.number, rounding, factor)

    def shards(self) -> Iterator[tuple[str, int, ShardMetadata]]:
        """Each table part here: the table's name, its place in `tables`, its metadata."""
        for index, table in enumerate(self._config.embedding_tables):
            assert table.local_metadata is not None
            yield table.name, index, table.local_metadata

    def initialise(self, specs: Mapping[str, TableSpec], seed: int) -> None:
        """First steps and codes, the same whatever the ranks and the sharding."""
        for name, index, metadata in self.shards():
            spec = specs[name]
            assert spec.quantisation is not None
            (row, column), (rows, columns) = metadata.shard_offsets, metadata.shard_sizes
            if spec.frozen is not None:
                self._fill(spec, index, metadata)
                continue
            self.tables.step_of(index).fill_(spec.quantisation.initial_step)
            for first in range(0, rows, ASSIGNED_ROWS):
                last = min(first + ASSIGNED_ROWS, rows)
                start = initial_rows(name, row + first, row + last, spec.dim, spec.init_std, seed)
                part = start[:, column : column + columns].to(self.tables.codes.device)
                self.tables.assign(index, first, part, seed)

    def _fill(self, spec: TableSpec, index: int, metadata: ShardMetadata) -> None:
        """The rows of a frozen table from its files, zeros where they have none."""
        assert spec.frozen is not None
        (first, column), (rows, columns) = metadata.shard_offsets, metadata.shard_sizes
        device = self.tables.codes.device
        for start in range(0, rows, ASSIGNED_ROWS):
            zeros = torch.zeros(min(ASSIGNED_ROWS, rows - start), columns, device=device)
            self.tables.assign(index, start, zeros)
        for ids, vectors in read_rows(spec.name, spec.frozen, spec.rows, spec.dim):
            here = (ids >= first) & (ids < first + rows)
            part = vectors[here, column : column + columns].contiguous()
            self.tables.fit(index, (ids[here] - first).to(device), part.to(device))

    # What TorchRec asks of every kernel. Codes and steps are published by the collection, which
    # also knows the ranks that hold none.

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        return {} if destination is None else destination

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ()

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ()

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        yield from ()

    def flush(self) -> None:
        """Nothing is cached."""

    def purge(self) -> None:
        """Nothing is cached."""


class _TrainedLookup(torch.autograd.Function):
    """The look-up, whose backward is the update."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        kernel: QuantisedKernel,
        ids: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        ctx.kernel = kernel
        ctx.jagged = ids, offsets, weights
        return lookup(kernel.tables, ids, offsets, weights, kernel.pooling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.kernel.learn(*ctx.jagged, gradients[0])
        return (None,) * 5


class QuantisedOptimizer(FusedOptimizer):
    """The learning rates and the state of a kernel's optimisers, as TorchRec knows them.

    The first group of parameters has the rows' learning rate, the second the steps'. `step` hands
    them to the kernel, whose next backward uses them.
    """

    def __init__(self, kernel: QuantisedKernel, pg: dist.ProcessGroup | None) -> None:
        self.kernel = kernel
        tables = kernel.tables
        params, state = {}, {}
        for name, parts in _by_table(kernel).items():
            plan = parts[0][1].global_metadata
            codes = [(part.local_metadata, tables.codes_of(index)) for index, part in parts]
            parameter = sharded(
                plan.shards_metadata, codes, lambda columns: row_bytes(columns, tables.bits), pg
            )
            params[f"{name}.codes"] = parameter
            moments = {}
            for key, first in tables.state_of(parts[0][0]).items():
                block = parts[0][1].local_cols // first.shape[1]
                local = [(part.local_metadata, tables.state_of(i)[key]) for i, part in parts]
                moments[f"{name}.{key}"] = sharded(
                    plan.shards_metadata, local, lambda columns, b=block: columns // b, pg
                )
            if moments:
                state[parameter] = moments
        groups: list[dict[str, Any]] = [
            {"params": list(params.values()), "lr": tables.optimizer.learning_rate}
        ]
        if tables.step_optimizer is not None:
            groups.append({"params": [], "lr": tables.step_optimizer.learning_rate})
        super().__init__(params, state, groups)

    def step(self, closure: Any = None) -> None:
        tables = self.kernel.tables
        rates = [group["lr"] for group in self.param_groups]
        tables.optimizer = replace(tables.optimizer, learning_rate=rates[0])
        if tables.step_optimizer is not None:
            tables.step_optimizer = replace(tables.step_optimizer, learning_rate=rates[1])

    def zero_grad(self, set_to_none: bool = False) -> None:
        """There are no gradients to clear."""


def sharded(
    plan: Sequence[ShardMetadata],
    local: Sequence[tuple[ShardMetadata, Tensor]],
    width: Callable[[int], int],
    pg: dist.ProcessGroup | None,
    dtype: torch.dtype | None = None,
) -> ShardedTensor:
    """A `ShardedTensor` of a table's codes, steps or state, which has a table's rows.

    Args:
        plan: all shards of the table, in rows and columns.
        local: this rank's shards, each with its tensor.
        width: columns of the tensor for so many of the table.
        pg: of the ranks that share the table.
        dtype: of the tensor, for ranks without a shard.
    """

    def converted(metadata: ShardMetadata) -> ShardMetadata:
        (row, column), (rows, columns) = metadata.shard_offsets, metadata.shard_sizes
        sizes = [rows, width(columns)]
        return ShardMetadata([row, width(column)], sizes, metadata.placement)  # pyright: ignore

    shards = [converted(metadata) for metadata in plan]
    size = [max(s.shard_offsets[d] + s.shard_sizes[d] for s in shards) for d in (0, 1)]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(tensor, converted(metadata)) for metadata, tensor in local],
        ShardedTensorMetadata(
            shards_metadata=shards,
            size=torch.Size(size),
            tensor_properties=TensorProperties(dtype=local[0][1].dtype if local else dtype),  # pyright: ignore
        ),
        process_group=pg,
    )


def table_key(name: str) -> int:
    """What names a table to the random numbers, below 2^32."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def _by_table(kernel: QuantisedKernel) -> dict[str, list[tuple[int, Any]]]:
    """For each table its parts in the kernel: several where this rank has several column shards."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for index, table in enumerate(kernel.config.embedding_tables):
        found.setdefault(table.name, []).append((index, table))
    return found
