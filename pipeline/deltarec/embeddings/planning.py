# SPDX-License-Identifier: Apache-2.0
"""Which table goes where: TorchRec's planner with true bytes and today's hardware.

The same planning serves a job, for the machine it runs on, and `deltarec plan`, for any other.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingPerfEstimator,
    EmbeddingStorageEstimator,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    ShardingOption,
    Stats,
)
from torchrec.distributed.types import ShardingPlan, ShardingType

from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.quantised_collections import BagSharder, Sharder
from deltarec.embeddings.tables import TableSpec

AUTO = ["table_wise", "row_wise"]
"""What `sharding: auto` lets the planner choose from, and `table_row_wise` on several GPU nodes.
Column-wise is left out because it changes row-wise optimiser state, data-parallel because it
changes the optimiser."""
MIN_ROWS = 64
"""Rows a rank from which on `auto` divides by rows; a rank without any crashes on CPU."""
RESERVED = 0.2
"""Share of a device's memory that a plan leaves to dense parameters and activations."""
GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """The machines to plan for. Bandwidths are in 10^9 bytes a second, of one device, one way."""

    device: str
    """`cpu` or `cuda`."""
    nodes: int = 1
    per_node: int = 1
    """Processes of a node, one a GPU."""
    memory_bytes: int = 80 * GIB
    """For tables, of one process: a GPU's memory, or its share of a CPU node's."""
    memory_gbps: float = 3350.0
    """Of that memory: HBM3 of an H100."""
    intra_gbps: float = 450.0
    """Between devices of a node: NVLink 4."""
    inter_gbps: float = 50.0
    """Between nodes: one 400 Gb/s port a GPU."""

    @classmethod
    def here(cls, device: torch.device) -> "Hardware":
        """This job's machines."""
        world = dist.get_world_size()
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        nodes = max(1, world // per_node)
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            return cls("cuda", nodes, per_node, memory)
        return cls.cpu(nodes, per_node, psutil.virtual_memory().total // per_node)

    @classmethod
    def cpu(cls, nodes: int, per_node: int, memory_bytes: int) -> "Hardware":
        """CPU machines: bandwidths of one socket's DDR5 shared by its processes, and 100 Gb/s."""
        share = 200.0 / per_node
        return cls("cpu", nodes, per_node, memory_bytes, share, share, 12.5 / per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.per_node

    def topology(self) -> Topology:
        """As TorchRec wants it: bytes and bytes a millisecond."""
        on_gpu = self.device == "cuda"
        bandwidth = self.memory_gbps * 1e6
        return Topology(
            world_size=self.world_size,
            local_world_size=self.per_node,
            compute_device=self.device,
            hbm_cap=self.memory_bytes if on_gpu else None,
            ddr_cap=self.memory_bytes,
            hbm_mem_bw=bandwidth,
            ddr_mem_bw=bandwidth,
            intra_host_bw=self.intra_gbps * 1e6,
            inter_host_bw=self.inter_gbps * 1e6,
        )


SHARDERS: list[Any] = [BagSharder(), Sharder()]


@dataclass
class Planned(Stats):
    """What the planner chose, and what it chose from; filled where the planning was done."""

    chosen: list[ShardingOption] = field(default_factory=list)
    considered: list[ShardingOption] = field(default_factory=list)
    plan: ShardingPlan | None = None

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Called by the planner with all it knows."""
        self.chosen = list(kwargs["best_plan"])
        enumerator = kwargs["enumerator"]
        self.considered = list(enumerator.last_stored_search_space or [])


class _StorageEstimator(EmbeddingStorageEstimator):
    """The stock estimate of inputs and outputs, with the true bytes of weights and optimiser state.

    TorchRec counts every table that is not fp32 at two bytes an element, row-wise state in the
    table's type, and the state of an optimiser not yet applied as nothing.
    """

    def __init__(self, topology: Topology, tables: Mapping[str, TableSpec]) -> None:
        super().__init__(topology)
        self.tables = tables
        self.memory = "hbm" if topology.compute_device == "cuda" else "ddr"

    def estimate(self, sharding_options: list[Any], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            stock = option.tensor.element_size()
            for shard in option.shards:
                rows, columns = shard.size
                static = static_bytes(self.tables[option.name], option, shard)
                moving = getattr(shard.storage, self.memory) - stock * rows * columns
                setattr(shard.storage, self.memory, static + max(moving, 0))


def static_bytes(table: TableSpec, option: ShardingOption, shard: Any) -> int:
    """Bytes of a shard's weights and fused optimiser state."""
    rows, columns = shard.size
    weights = table.weight_bytes(rows, columns)
    fused = option.compute_kernel == EmbeddingComputeKernel.FUSED.value
    return weights + (table.state_bytes(rows, columns) if fused else 0)


def make_plan(
    module: EmbeddingTables,
    tables: Mapping[str, TableSpec],
    hardware: Hardware,
    batch_size: int,
) -> Planned:
    """Plan the collections of a job.

    Under a process group of the hardware's size one rank plans and sends the plan to all; without
    one, this process plans alone.

    Args:
        module: the collections, on the meta device.
        tables: the tables.
        hardware: the machines.
        batch_size: samples of one rank's batch.

    Raises:
        ValueError: a table's sharding cannot be, or no plan fits the memory.
    """
    _refuse_impossible(module, tables, hardware)
    topology = hardware.topology()
    constraints = {name: _constraint(table, hardware) for name, table in tables.items()}
    planned = Planned()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        enumerator=EmbeddingEnumerator(
            topology=topology,
            batch_size=batch_size,
            constraints=constraints,
            estimator=[
                EmbeddingPerfEstimator(topology=topology, constraints=constraints),
                _StorageEstimator(topology, tables),
            ],
        ),
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        # The stock grid search over all combinations takes many minutes for hundreds of ranks.
        proposer=[GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
        stats=[planned],
    )
    try:
        if dist.is_initialized():
            planned.plan = planner.collective_plan(module, SHARDERS, dist.GroupMember.WORLD)
        else:
            planned.plan = planner.plan(module, SHARDERS)
    except PlannerError as error:
        raise ValueError(_why_none_fits(tables, hardware)) from error
    return planned


def describe(plan: ShardingPlan, tables: Mapping[str, TableSpec], world_size: int) -> str:
    """The plan as a readable text: each table, its shards and their bytes; each rank's total."""
    lines = [
        f"{'table':24} {'rows':>12} {'dim':>4} {'type':>5} {'sharding':14} "
        "shards (rank: rows x columns, MiB of weights + optimiser)"
    ]
    totals = [0.0] * world_size
    for name, parameter in plan_by_table(plan).items():
        table = tables[name]
        shards = []
        for rank, rows, columns in _shards(parameter, table, world_size):
            weights = table.weight_bytes(rows, columns) / 2**20
            replicated = parameter.sharding_type == ShardingType.DATA_PARALLEL.value
            state = 0.0 if replicated else table.state_bytes(rows, columns) / 2**20
            totals[rank] += weights + state
            shards.append(f"{rank}: {rows} x {columns}, {weights:.2f} + {state:.2f}")
        shown = shards if len(shards) <= 8 else [*shards[:4], f"… {len(shards)} in all"]
        lines.append(
            f"{name:24} {table.rows:12} {table.dim:4} {table.precision:>5} "
            f"{parameter.sharding_type:14} {'; '.join(shown)}"
        )
    lines += [f"rank {rank}: {total:.2f} MiB of tables" for rank, total in enumerate(totals)]
    return "\n".join(lines) + "\n"


def plan_by_table(plan: ShardingPlan) -> dict[str, Any]:
    """How each table is sharded, by its name."""
    return {
        name: parameter
        for collection in plan.plan.values()
        for name, parameter in collection.items()  # pyright: ignore[reportAttributeAccessIssue]
    }


def _shards(parameter: Any, table: TableSpec, world_size: int) -> Sequence[tuple[int, int, int]]:
    if parameter.sharding_spec is None:  # data-parallel: every rank has all of it
        return [(rank, table.rows, table.dim) for rank in range(world_size)]
    shards = parameter.sharding_spec.shards
    return [(shard.placement.rank(), *shard.shard_sizes) for shard in shards]


def _constraint(table: TableSpec, hardware: Hardware) -> ParameterConstraints:
    on_gpu = hardware.device == "cuda"
    types: list[str] = [table.sharding]
    if table.sharding == "auto" and table.rows < MIN_ROWS * hardware.world_size:
        types = ["table_wise"]
    elif table.sharding == "auto":
        types = AUTO + (["table_row_wise"] if hardware.nodes > 1 and on_gpu else [])
    return ParameterConstraints(
        sharding_types=types,
        compute_kernels=[
            EmbeddingComputeKernel.DENSE.value
            if table.sharding == "data_parallel"
            else EmbeddingComputeKernel.FUSED.value
        ],
        min_partition=table.column_block,
    )


def _refuse_impossible(
    module: EmbeddingTables,
    tables: Mapping[str, TableSpec],
    hardware: Hardware,
) -> None:
    for name, table in tables.items():
        fbgemm = table.quantisation is None and table.sharding != "data_parallel"
        if hardware.device == "cpu" and fbgemm and not table.optimizer.runs_on_cpu:
            raise ValueError(
                f"embedding.optimizer: table '{name}' is {table.precision}, and FBGEMM has no "
                "fused Adam on CPU; use rowwise_adagrad, adagrad or sgd, make all tables int8, "
                "int4 or int2, or train on a GPU"
            )
        most = -(-table.rows // hardware.world_size)
        if table.sharding == "row_wise" and most * (hardware.world_size - 1) >= table.rows:
            raise ValueError(
                f"embedding.tables.{name}.sharding: row_wise gives some of "
                f"{hardware.world_size} processes none of {table.rows} rows, on which TorchRec "
                "crashes; choose table_wise"
            )
    _refuse_unequal_cuts(module, tables)
    for name in module.schema.unpooled_tables:
        if tables[name].sharding == "data_parallel":
            raise ValueError(
                f"embedding.tables.{name}.sharding: TorchRec cannot replicate a table of which a "
                "sequence or quantisation_aware training uses single rows; choose table_wise, "
                "row_wise or column_wise"
            )


def _refuse_unequal_cuts(module: EmbeddingTables, tables: Mapping[str, TableSpec]) -> None:
    """TorchRec cuts the columns of all tables of an EmbeddingCollection alike."""
    widths: dict[int, dict[int, str]] = {}
    for name in sorted(module.schema.unpooled_tables):
        table = tables[name]
        if table.sharding == "column_wise":
            widths.setdefault(table.dim, {}).setdefault(table.column_block, name)
    for found in widths.values():
        if len(found) > 1:
            (block, name), (other_block, other), *_ = found.items()
            raise ValueError(
                f"embedding.tables.{name}.column_block: got {block}, and {other_block} for "
                f"'{other}'; TorchRec cuts all column_wise tables that sequences use alike"
            )


def _why_none_fits(tables: Mapping[str, TableSpec], hardware: Hardware) -> str:
    needed = sum(
        table.weight_bytes(table.rows, table.dim) + table.state_bytes(table.rows, table.dim)
        for table in tables.values()
    )
    usable = hardware.world_size * hardware.memory_bytes * (1 - RESERVED)
    largest = max(tables.values(), key=lambda table: table.rows * table.dim)
    text = (
        f"no sharding plan fits: the tables need {needed / GIB:,.1f} GiB with their optimiser, "
        f"{hardware.world_size} processes have {usable / GIB:,.1f} GiB for tables "
        f"({1 - RESERVED:.0%} of their memory), each {usable / hardware.world_size / GIB:,.1f}"
    )
    if needed <= usable:
        size = largest.weight_bytes(largest.rows, largest.dim) / GIB
        return f"{text}; table '{largest.name}' of {size:,.1f} GiB is {largest.sharding}: row_wise?"
    return f"{text}; take more processes, a smaller dim, or a lower precision"
