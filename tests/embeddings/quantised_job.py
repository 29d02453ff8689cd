# SPDX-License-Identifier: Apache-2.0
"""The small job with quantised tables, and all that such tables hold, gathered from all ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.small_job import small_job

TABLES = ("user", "item", "city", "country", "tags", "scores")


def quantised_job(folder: Path, sharding: str | None = None, **overrides: Any) -> Job:
    """Every table int8, 16 columns in blocks of 8, ALPT in two passes if not told otherwise."""
    tables = {f"embedding__tables__{name}__column_block": 8 for name in TABLES}
    tables["embedding__tables__country__sharding"] = "table_wise"
    if sharding is not None:
        tables |= {f"embedding__tables__{name}__sharding": sharding for name in TABLES}
    settings = {"embedding__dim": 16, "embedding__precision": "int8", "train__log_every": 1}
    return small_job(folder, **(settings | tables | overrides))


def trainer(job: Job, folder: Path) -> Trainer:
    return Trainer(job, RunFolder(folder), torch.device("cpu"))


def whole_state(mine: Trainer) -> dict[str, Tensor]:
    """Codes, steps and optimiser state of all tables, whole, on every rank."""
    sections = [mine.model.state_dict()]
    sections += mine.model.fused_optimizer.state_dict()["state"].values()  # type: ignore[attr-defined]
    named = {
        ".".join(name.split(".")[-2:]): value
        for section in sections
        for name, value in section.items()
        if hasattr(value, "local_shards")
    }
    gathered: list[Any] = [None] * dist.get_world_size()
    own = {
        name: (value.size(), [(s.metadata.shard_offsets, s.tensor) for s in value.local_shards()])
        for name, value in named.items()
    }
    dist.all_gather_object(gathered, own)
    found: dict[str, Tensor] = {}
    for rank in gathered:
        for name, (size, shards) in rank.items():
            for offsets, tensor in shards:
                full = found.setdefault(name, torch.empty(size, dtype=tensor.dtype))
                place = tuple(slice(o, o + n) for o, n in zip(offsets, tensor.shape, strict=True))
                full[place] = tensor
    return found


def assert_equal_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
