# SPDX-License-Identifier: Apache-2.0
"""What a job says of itself at its end: parts of result.json, and what a person reads."""

import resource
import sys
from importlib.metadata import version
from typing import Any, NotRequired

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from typing_extensions import TypedDict

from deltarec.distributed import all_sum, world_size
from deltarec.metrics.evaluation import Result
from deltarec.metrics.table import render


class Trained(TypedDict):
    """A finished run: result.json, and where it lies."""

    run_dir: str
    steps: int
    samples: int
    invalid: dict[str, int]
    """Values that a policy mended, by `FEATURE.POLICY`."""
    skipped: dict[str, dict[str, int]]
    """Of each split that was read, `files` that are damaged and `rows` lost with them."""
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    embedding_bytes: dict[str, int]
    """Of `weights`, `optimizer` and `id_maps`."""
    valid: NotRequired[Result]
    test: NotRequired[Result]
    stream: NotRequired[Result]
    """Of a stream, each partition before it was trained on, all together."""
    partitions: NotRequired[list[dict[str, Any]]]
    versions: dict[str, str]
    config_sha256: str


def embedding_bytes(model: DistributedModelParallel) -> dict[str, int]:
    """True bytes of a `RankingModel`'s tables and of their fused optimiser state; a collective."""
    weights = sum(
        _local_bytes(value)
        for name, value in model.state_dict().items()
        if name.startswith("tables.")
    )
    state = sum(
        _local_bytes(value)
        for values in model.fused_optimizer.state_dict()["state"].values()  # pyright: ignore
        for value in values.values()
    )
    found = {"weights": _sum_over_ranks(weights), "optimizer": _sum_over_ranks(state)}
    assignments: Any = model.module.assignments
    if assignments.owned:
        found["id_maps"] = _sum_over_ranks(assignments.num_bytes)
    return found


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that the job has had, on all ranks together; a collective."""
    if device.type == "cuda":
        return _sum_over_ranks(torch.cuda.max_memory_allocated(device))
    return _sum_over_ranks(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def all_counts(counts: dict[str, int]) -> dict[str, int]:
    """Counts by name, added up over the ranks; a collective."""
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, counts)
    names = sorted({name for found in gathered for name in found})
    return {name: sum(found.get(name, 0) for found in gathered) for name in names}


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    return {
        "deltarec": version("deltarec"),
        "torch": torch.__version__,
        "torchrec": version("torchrec"),
        "python": sys.version.split()[0],
    }


def report(result: dict[str, Any]) -> str:
    """What a person reads at the end: the metrics and the speed."""
    lines = []
    for split in ("stream", "valid", "test"):
        if split in result:
            lines.append(f"{split}\n{render(result[split])}\n")
    if result["invalid"]:
        mended = ", ".join(f"{name} {count:,}" for name, count in result["invalid"].items())
        lines.append(f"values mended or left out in training: {mended}")
    lines.append(
        f"{result['steps']:,} steps, {result['samples']:,} samples, {result['seconds']:.1f} s, "
        f"{result['samples_per_second']:,.0f} samples/s"
    )
    return "\n".join(lines)


def _local_bytes(value: Any) -> int:
    if hasattr(value, "local_shards"):
        return sum(s.tensor.numel() * s.tensor.element_size() for s in value.local_shards())
    return value.numel() * value.element_size()


def _sum_over_ranks(value: int) -> int:
    return int(all_sum(torch.tensor(value)))
