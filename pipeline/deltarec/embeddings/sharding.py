# SPDX-License-Identifier: Apache-2.0
"""From collections on the meta device to a sharded, initialised, data-parallel model.

TorchRec plans and shards; here stand the choices that make it right for this project: row-wise bags
on CPU, true bytes for the planner, tables of optimisers, and what is refused because it would train
something else than it says.
"""

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardedTensor, ShardingPlan, ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.initialise import initial_rows
from deltarec.embeddings.tables import EmbeddingConfig, TableOptimizer, TableSpec, table_name

AUTO = ["table_wise", "row_wise"]
"""What `sharding: auto` lets the planner choose from. Column-wise is left out because it changes
row-wise optimiser state, data-parallel because it changes the optimiser."""


RESERVED = 0.2
"""Share of a device's memory that the plan leaves to dense parameters and activations."""


class _BagSharder(EmbeddingBagCollectionSharder):
    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


class _Sharder(EmbeddingCollectionSharder):
    def __init__(self) -> None:
        super().__init__(use_index_dedup=False)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


SHARDERS: list[Any] = [_BagSharder(), _Sharder()]


class _StorageEstimator(EmbeddingStorageEstimator):
    """The stock estimate of inputs and outputs, with the true bytes of weights and optimiser state.

    TorchRec counts every table that is not fp32 at two bytes an element, row-wise state in the
    table's type, and the state of an optimiser not yet applied as nothing.
    """

    def __init__(
        self, topology: Topology, tables: Mapping[str, TableSpec], optimizer: TableOptimizer
    ) -> None:
        super().__init__(topology)
        self.tables = tables
        self.optimizer = optimizer
        self.memory = "hbm" if topology.compute_device == "cuda" else "ddr"

    def estimate(self, sharding_options: list[Any], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            table = self.tables[option.name]
            stock = option.tensor.element_size() * option.tensor.numel()
            for shard in option.shards:
                rows, columns = shard.size
                static = table.weight_bytes(rows, columns)
                if option.compute_kernel == EmbeddingComputeKernel.FUSED.value:
                    static += self.optimizer.state_bytes(rows, columns)
                moving = getattr(shard.storage, self.memory) - round(
                    stock * rows * columns / option.tensor.numel()
                )
                setattr(shard.storage, self.memory, static + max(moving, 0))


def make_plan(
    tables_module: EmbeddingTables,
    tables: Mapping[str, TableSpec],
    config: EmbeddingConfig,
    device: torch.device,
    batch_size: int,
) -> ShardingPlan:
    """TorchRec's plan for this process group, made on one rank and sent to all.

    Args:
        tables_module: the collections, on the meta device.
        tables: the tables.
        config: sharding constraints and the optimiser.
        device: where the tables go.
        batch_size: samples of one rank's batch.

    Raises:
        ValueError: a table's sharding cannot be, or no plan fits the memory.
    """
    _refuse_impossible(tables_module, tables, config, device)
    topology = Topology(
        world_size=dist.get_world_size(),
        compute_device=device.type,
        local_world_size=_local_world_size(),
        hbm_cap=_device_memory(device),
        ddr_cap=psutil.virtual_memory().total // _local_world_size(),
    )
    constraints = {name: _constraint(table) for name, table in tables.items()}
    enumerator = EmbeddingEnumerator(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        estimator=[
            EmbeddingPerfEstimator(topology=topology, constraints=constraints),
            _StorageEstimator(topology, tables, config.optimizer),
        ],
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        enumerator=enumerator,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )
    try:
        return planner.collective_plan(tables_module, SHARDERS, dist.GroupMember.WORLD)
    except PlannerError as error:
        raise ValueError(f"no sharding plan fits this machine: {error}") from error


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    tables: Mapping[str, TableSpec],
    config: EmbeddingConfig,
    device: torch.device,
    seed: int,
) -> DistributedModelParallel:
    """The model with its `tables` sharded by the plan and all the rest replicated.

    Fused optimisers are set on all tables but the data-parallel ones: TorchRec would leave those
    frozen. They are ordinary parameters, for the dense optimiser.
    """
    for name, parameter in model.named_parameters():
        if _sharding_of(plan, name) not in (None, ShardingType.DATA_PARALLEL.value):
            apply_optimizer_in_backward(
                config.optimizer.torchrec_type, [parameter], config.optimizer.arguments()
            )
    prefix = {f"tables.{path}": table_plan for path, table_plan in plan.plan.items()}
    parallel = DistributedModelParallel(
        model, device=device, plan=ShardingPlan(prefix), sharders=SHARDERS
    )
    _initialise(parallel, tables, seed)
    return parallel


def describe(plan: ShardingPlan, tables: Mapping[str, TableSpec], optimizer: TableOptimizer) -> str:
    """The plan as a readable text: each table, its shards and their bytes; each rank's total."""
    lines = [
        f"{'table':24} {'rows':>12} {'dim':>4} {'type':>5} {'sharding':14} "
        "shards (rank: rows x columns, MiB of weights + optimiser)"
    ]
    totals: dict[int, float] = {}
    for collection in plan.plan.values():
        for name, parameter in collection.items():  # pyright: ignore[reportAttributeAccessIssue]
            table = tables[name]
            shards = []
            for rank, rows, columns in _shards(parameter, table):
                weights = table.weight_bytes(rows, columns) / 2**20
                state = 0.0
                if parameter.sharding_type != ShardingType.DATA_PARALLEL.value:
                    state = optimizer.state_bytes(rows, columns) / 2**20
                totals[rank] = totals.get(rank, 0) + weights + state
                shards.append(f"{rank}: {rows} x {columns}, {weights:.2f} + {state:.2f}")
            lines.append(
                f"{name:24} {table.rows:12} {table.dim:4} {table.precision:>5} "
                f"{parameter.sharding_type:14} {'; '.join(shards)}"
            )
    lines += [f"rank {rank}: {total:.2f} MiB of tables" for rank, total in sorted(totals.items())]
    return "\n".join(lines) + "\n"


def _shards(parameter: Any, table: TableSpec) -> list[tuple[int, int, int]]:
    if parameter.sharding_spec is None:  # data-parallel: every rank has all of it
        return [(rank, table.rows, table.dim) for rank in range(dist.get_world_size())]
    shards = parameter.sharding_spec.shards
    return [(shard.placement.rank(), *shard.shard_sizes) for shard in shards]


def _constraint(table: TableSpec) -> ParameterConstraints:
    return ParameterConstraints(
        sharding_types=AUTO if table.sharding == "auto" else [table.sharding],
        compute_kernels=[
            EmbeddingComputeKernel.DENSE.value
            if table.sharding == "data_parallel"
            else EmbeddingComputeKernel.FUSED.value
        ],
        min_partition=table.column_block,
    )


def _refuse_impossible(
    tables_module: EmbeddingTables,
    tables: Mapping[str, TableSpec],
    config: EmbeddingConfig,
    device: torch.device,
) -> None:
    optimizer = config.optimizer
    if device.type == "cpu" and not optimizer.runs_on_cpu:
        raise ValueError(
            "embedding.optimizer adam: FBGEMM has no fused Adam on CPU; "
            "use rowwise_adagrad, adagrad or sgd, or train on a GPU"
        )
    for name in tables_module.schema.unpooled_tables:
        if tables[name].sharding == "data_parallel":
            raise ValueError(
                f"embedding.tables.{name}.sharding: TorchRec cannot replicate a table that a "
                "sequence uses; choose table_wise, row_wise or column_wise"
            )


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
        if name is None:
            continue
        table = tables[name]
        shards = (
            [(shard.metadata.shard_offsets, shard.tensor) for shard in value.local_shards()]
            if isinstance(value, ShardedTensor)
            else [([0, 0], value)]
        )
        for (row, column), tensor in shards:
            rows = initial_rows(name, row, row + tensor.shape[0], table.dim, table.init_std, seed)
            tensor.detach().copy_(rows[:, column : column + tensor.shape[1]])


def _local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def _device_memory(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory
