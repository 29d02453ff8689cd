# SPDX-License-Identifier: Apache-2.0
"""From a model with collections on the meta device to a sharded, initialised, data-parallel one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedTensor, ShardingPlan, ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from deltarec.embeddings.frozen import read_rows
from deltarec.embeddings.initialise import initial_rows
from deltarec.embeddings.planning import SHARDERS
from deltarec.embeddings.quantised_collections import quantised_tables
from deltarec.embeddings.quantised_kernel import Settings, mark
from deltarec.embeddings.tables import TableSpec, table_name


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    tables: Mapping[str, TableSpec],
    device: torch.device,
    seed: int,
    batch_size: int,
) -> DistributedModelParallel:
    """The model with its `tables` sharded by the plan and all the rest replicated.

    Fused optimisers are set on all tables but the data-parallel ones: TorchRec would leave those
    frozen. They are ordinary parameters, for the dense optimiser.

    Args:
        model: its `tables` on the meta device.
        plan: of the collections in `tables`.
        tables: the tables.
        device: of this rank.
        seed: of the initial weights, and of the rounding of quantised tables.
        batch_size: samples of a global batch.
    """
    for name, parameter in model.named_parameters():
        if _sharding_of(plan, name) in (None, ShardingType.DATA_PARALLEL.value):
            continue
        table = tables[table_name(name)]
        if table.quantisation is not None:
            mark(parameter, Settings.of(table, seed, batch_size))
        else:
            optimizer = table.optimizer
            apply_optimizer_in_backward(optimizer.torchrec_type, [parameter], optimizer.arguments())
    prefix = {f"tables.{path}": table_plan for path, table_plan in plan.plan.items()}
    parallel = DistributedModelParallel(
        model, device=device, plan=ShardingPlan(prefix), sharders=SHARDERS
    )
    collections: Any = parallel.module.tables
    for collection in collections.frozen():
        collection.frozen = True
    _fix_buckets(parallel)
    _initialise(parallel, tables, seed)
    return parallel


def _fix_buckets(model: DistributedModelParallel) -> None:
    """Lay out the buckets of DistributedDataParallel once and for all.

    It would do so after the first step, in the order in which gradients came. Where a gradient
    stands in its bucket decides in which order a ring of three and more ranks adds it, so the first
    step of a resumed job would round otherwise than the same step of a whole one. The price: with
    more than one bucket, the last gradients are reduced first, so less is hidden behind backward.
    """
    wrapped = model._dmp_wrapped_module
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.reducer._push_all_rebuilt_params()
        wrapped.reducer._rebuild_buckets()


def _sharding_of(plan: ShardingPlan, parameter: str) -> str | None:
    """How a parameter of the model is sharded; None for one that is no table."""
    for path, collection in plan.plan.items():
        if parameter.startswith(f"tables.{path}."):
            return collection[table_name(parameter)].sharding_type  # pyright: ignore
    return None


def _initialise(
    model: DistributedModelParallel, tables: Mapping[str, TableSpec], seed: int
) -> None:
    for key, value in model.state_dict().items():
        name = table_name(key) if key.startswith("tables.") else None
        if name is None or tables[name].quantisation is not None:
            continue
        table = tables[name]
        shards = (
            [(shard.metadata.shard_offsets, shard.tensor) for shard in value.local_shards()]
            if isinstance(value, ShardedTensor)
            else [([0, 0], value)]
        )
        for (row, column), tensor in shards:
            if table.frozen is not None:
                _fill(tensor.detach(), table, row, column)
                continue
            rows = initial_rows(name, row, row + tensor.shape[0], table.dim, table.init_std, seed)
            tensor.detach().copy_(rows[:, column : column + tensor.shape[1]])
    for collection in quantised_tables(model):
        for kernel in collection.kernels():
            kernel.initialise(tables, seed)


def _fill(shard: Tensor, table: TableSpec, first: int, column: int) -> None:
    """The rows of a frozen table's shard from its files, zeros where they have none."""
    assert table.frozen is not None
    shard.zero_()
    for ids, vectors in read_rows(table.name, table.frozen, table.rows, table.dim):
        here = (ids >= first) & (ids < first + shard.shape[0])
        part = vectors[here, column : column + shard.shape[1]]
        shard[(ids[here] - first).to(shard.device)] = part.to(shard)
