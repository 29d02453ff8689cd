# SPDX-License-Identifier: Apache-2.0
"""What an asynchronous checkpoint costs: the step that starts it, and the speed of the write.

    deltarec bench checkpoint --nproc 2 --table-gb 5

Each rank trains a small model over large tables on ids in memory. Between two steps a checkpoint is
begun; the step that begins it is measured from before `save` to the end of the next training step,
beside the steps before, while tables are copied, while the copy is written, and after. Beside the
write, while training goes on, stands that of the same bytes to one plain file by each rank at the
same time, while nothing else is done. Both end on the disk.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deltarec.checkpoint import TrainState
from deltarec.config import validate
from deltarec.data.batch import Position
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer

NUM_TABLES, DIM, BATCH = 26, 16, 4096


def job(folder: Path, rows: int) -> Job:
    """26 row-wise tables, a two-layer MLP, batches of 4096."""
    names = [f"id_{i}" for i in range(NUM_TABLES)]
    config = {
        "data": {"source": str(folder), "train": ["0.parquet"]},
        "features": {name: {"kind": "id"} for name in names},
        "tasks": {"label": {}},
        "embedding": {
            "dim": DIM,
            "tables": {name: {"rows": rows, "sharding": "row_wise"} for name in names},
        },
        "model": {
            "trunk": {"name": "mlp", "hidden": [256, 128]},
            "heads": {"name": "shared_bottom"},
        },
        "train": {"batch_size": BATCH, "epochs": 1_000_000, "checkpoint": {"keep": 1}},
    }
    return validate(Job, config, "bench checkpoint")


def write_ids(folder: Path, rows: int, samples: int) -> None:
    """Uniform ids: the dearest case, almost every look-up updates another row."""
    random = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        f"id_{i}": random.integers(0, rows, samples) for i in range(NUM_TABLES)
    }
    columns["label"] = random.integers(0, 2, samples, dtype=np.int8)
    pq.write_table(pa.table(columns), folder / "0.parquet", row_group_size=BATCH)


def measure(folder: str, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """Runs on each rank."""
    with process_group() as device:
        trainer = Trainer(job(Path(folder), rows), RunFolder(Path(folder, "run")), device)
        batches = trainer.reader.read(Position(), 1_000_000)

        def stepped() -> None:
            trainer.pipeline.progress(batches)
            trainer.checkpoints.after_step()

        for _ in range(10):
            stepped()
        found = [one_checkpoint(trainer, stepped, number, steps) for number in range(repeats)]
        num_bytes = sum(
            shard.tensor.numel() * shard.tensor.element_size()
            for part in (trainer.model.state_dict(), fused_state(trainer))
            for value in part.values()
            if hasattr(value, "local_shards")
            for shard in value.local_shards()
        )
        plain = plain_write_seconds(Path(folder), num_bytes)
        result = {key: statistics.median(f[key] for f in found) for key in found[0]}
        return result | {"bytes": num_bytes, "plain_write": plain}


def one_checkpoint(trainer: Trainer, stepped: Any, number: int, steps: int) -> dict[str, float]:
    """Seconds of the steps around a checkpoint."""
    before = [timed(stepped) for _ in range(steps)]
    checkpoints, begun = trainer.checkpoints, time.perf_counter()
    checkpoints.save(TrainState(step=number + 1))
    call = time.perf_counter() - begun
    stepped()
    starting = time.perf_counter() - begun
    copying = steps_while(lambda: checkpoints.is_copying, stepped)
    copied = time.perf_counter() - begun
    writing = steps_while(lambda: checkpoints.is_writing, stepped)
    checkpoints.wait()
    written = time.perf_counter() - begun
    after = [timed(stepped) for _ in range(steps)]
    return {
        "step_before": statistics.median(before),
        "save_call": call,
        "step_that_starts": starting,
        "step_while_copying": statistics.median(copying),
        "slowest_while_copying": max(copying),
        "step_while_writing": statistics.median(writing),
        "slowest_while_writing": max(writing),
        "step_after": statistics.median(after),
        "copy": copied,
        "write": written - copied,
    }


def steps_while(condition: Any, stepped: Any) -> list[float]:
    """Seconds of each step, at least one, while the condition holds on any rank."""
    seconds = []
    going_on = torch.tensor([1])
    while going_on.item():
        seconds.append(timed(stepped))
        going_on = torch.tensor([int(condition())])
        dist.all_reduce(going_on, op=dist.ReduceOp.MAX)  # all ranks make as many steps
    return seconds


def timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def fused_state(trainer: Trainer) -> dict[str, Any]:
    state = trainer.model.fused_optimizer.state_dict()["state"]
    return {f"{n}.{k}": v for n, values in state.items() for k, v in values.items()}  # pyright: ignore


def plain_write_seconds(folder: Path, num_bytes: int) -> float:
    """Each rank writes as many bytes to a file of its own, at the same time."""
    piece = os.urandom(16 << 20)
    path = folder / f"plain_{dist.get_rank()}"
    dist.barrier()
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for begin in range(0, num_bytes, len(piece)):
            file.write(piece[: num_bytes - begin])
        os.fsync(file.fileno())
    dist.barrier()
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench checkpoint", description=__doc__)
    parser.add_argument("--table-gb", type=float, default=5.0, help="weights of all tables, 10⁹ B")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="before and after each checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if not given")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    rows = int(options.table_gb * 1e9) // (NUM_TABLES * DIM * 4)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_ids(Path(folder), rows, samples=100 * BATCH)
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=options.nproc,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="bench",
            max_restarts=0,
            start_method="spawn",
        )
        outcomes = elastic_launch(launch, measure)(folder, rows, options.steps, options.repeats)
    found = outcomes[0]
    total = sum(outcome["bytes"] for outcome in outcomes.values())
    print(f"tables and optimiser states: {total / 1e9:.2f} GB over {options.nproc} ranks")
    for key in found:
        if "step" in key or "slowest" in key:
            print(f"{key.replace('_', ' '):24} {found[key] * 1e3:>9,.0f} ms")
    print(
        f"the step that starts, of which save {found['save_call'] * 1e3:,.0f} ms, is "
        f"{found['step_that_starts'] / found['step_before']:.2f} x one before, "
        f"{found['step_that_starts'] / found['step_after']:.2f} x one after"
    )
    for name, key in (("copy", "copy"), ("write", "write"), ("plain files", "plain_write")):
        print(f"{name:24} {total / found[key] / 1e6:>9,.0f} MB/s ({found[key]:.1f} s)")
    if options.output:
        options.output.write_text(json.dumps({"ranks": outcomes, "bytes": total}, indent=2) + "\n")


if __name__ == "__main__":
    main()
