# SPDX-License-Identifier: Apache-2.0
"""`deltarec plan`: where a job's tables would go on machines that need not be there."""

from collections import defaultdict
from collections.abc import Iterable

from torchrec.distributed.planner.types import ShardingOption
from typing_extensions import TypedDict

from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.planning import GIB, Hardware, make_plan, static_bytes
from deltarec.job import Job


class Cost(TypedDict):
    """What a sharding of a table would cost its slowest process, and need of its fullest."""

    sharding: str
    ms: float
    largest_shard_bytes: int


class PlannedTable(Cost):
    """A table, and its chosen sharding."""

    rows: int
    dim: int
    precision: str
    bytes: int
    shards: int
    considered: list[Cost]


class Load(TypedDict):
    """Of a rank: bytes of weights and optimiser, and estimated milliseconds of a step."""

    bytes: int
    ms: float


class Plan(TypedDict):
    """Where tables would go."""

    world_size: int
    parameters: int
    step_ms: float
    """The slowest rank's look-ups, exchanges and updates of a step."""
    tables: dict[str, PlannedTable]
    ranks: list[Load]


def plan_job(job: Job, hardware: Hardware) -> Plan:
    """Plan a job's tables for the given machines, without data and without the machines.

    Raises:
        ValueError: no plan fits.
    """
    specs = job.embedding.resolved()
    share = -(-job.train.batch_size // hardware.world_size)
    module = EmbeddingTables(job.data_schema, specs)
    planned = make_plan(module, specs, hardware, share)
    rank_bytes: dict[int, int] = defaultdict(int)
    rank_ms: dict[int, float] = defaultdict(float)
    tables = {}
    others = defaultdict(list)
    for option in planned.considered:
        others[option.name].append(_cost(option))
    for option in planned.chosen:
        table = specs[option.name]
        for shard in option.shards:
            rank = int(shard.rank or 0)
            rank_bytes[rank] += static_bytes(table, option, shard)
            rank_ms[rank] += shard.perf.total if shard.perf else 0.0
        tables[option.name] = {
            "rows": table.rows,
            "dim": table.dim,
            "precision": table.precision,
            "bytes": sum(static_bytes(table, option, s) for s in option.shards),
            "shards": len(option.shards),
            **_cost(option),
            "considered": others[option.name],
        }
    return {
        "world_size": hardware.world_size,
        "parameters": sum(table.rows * table.dim for table in specs.values()),
        "step_ms": max(rank_ms.values()),
        "tables": tables,
        "ranks": [
            {"bytes": rank_bytes[rank], "ms": rank_ms[rank]} for rank in range(hardware.world_size)
        ],
    }


def render(found: Plan, hardware: Hardware) -> str:
    """The answer of `plan_job` as a text."""
    lines = [
        f"{found['parameters']:,} parameters in tables on {hardware.nodes} x {hardware.per_node} "
        f"processes ({hardware.device}), {hardware.memory_bytes / GIB:.0f} GiB each",
        "",
        f"{'table':20} {'rows':>14} {'dim':>4} {'GiB':>9} {'sharding':15} {'shards':>6} "
        f"{'ms':>8}  others (ms, largest shard GiB)",
    ]
    for name, table in found["tables"].items():
        lines.append(
            f"{name:20} {table['rows']:14,} {table['dim']:4} {table['bytes'] / GIB:9.2f} "
            f"{table['sharding']:15} {table['shards']:6} {table['ms']:8.3f}  "
            + _others(table["considered"], table["sharding"])
        )
    sizes = [rank["bytes"] / GIB for rank in found["ranks"]]
    times = [rank["ms"] for rank in found["ranks"]]
    lines += [
        "",
        f"tables and optimiser: {min(sizes):.3f} to {max(sizes):.3f} GiB a process, "
        f"{sum(sizes):,.1f} GiB in all",
        f"estimated look-up, exchange and update of tables: {max(times):.2f} ms a step on the "
        f"slowest process, {min(times):.2f} on the fastest; dense layers are not in it",
    ]
    return "\n".join(lines)


def _cost(option: ShardingOption) -> Cost:
    return {
        "sharding": option.sharding_type,
        "ms": max(shard.perf.total if shard.perf else 0.0 for shard in option.shards),
        "largest_shard_bytes": max(
            (shard.storage.hbm or shard.storage.ddr) if shard.storage else 0
            for shard in option.shards
        ),
    }


def _others(considered: Iterable[Cost], chosen: str) -> str:
    return "; ".join(
        f"{other['sharding']} {other['ms']:.3f}, {other['largest_shard_bytes'] / GIB:.2f}"
        for other in considered
        if other["sharding"] != chosen
    )
