# SPDX-License-Identifier: Apache-2.0
"""What a balancing method adds to a training step of several tasks.

    deltarec bench balancing --tasks 4 --output balancing.json

Eight id fields of 16 columns and a dense trunk 256-128 under mmoe of four experts, row-wise Adagrad
on the tables. One process, batches in memory. Methods take turns, step by step; the table has the
medians, and their ratios to `equal` in the same run. `dense backward` is one task's loss
differentiated by the looked-up vectors and the dense parameters. A method by gradients needs one
for each task where `equal` needs one in all, so `of its bound` is its step over

    equal + (tasks - 1) x dense backward

Steps are those that log nothing; `famo exact` looks at each batch again after its update.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.distributed.types import Awaitable

from deltarec.assembly import build_model
from deltarec.balancing import BALANCERS
from deltarec.balancing.balancer import GradientBalancer, global_losses
from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.optimizers import StepOptimizer

FIELDS, ROWS = [f"field{i}" for i in range(8)], 10_000
OPTIONS: dict[str, dict[str, Any]] = {
    "static": {"weights": {"task0": 2.0}},
    "dwa": {"period": 2},
    "stch": {"period": 2, "warmup": 1},
    "rmtl": {"gamma": 0.0},
    "famo exact": {"name": "famo", "exact": True},
}
"""Of methods whose defaults do not do here."""
CONTENDERS = [*BALANCERS, "famo exact"]
DENSE = "dense backward"


def write_data(folder: Path, samples: int, num_tasks: int) -> None:
    random = np.random.default_rng(0)
    columns = {name: random.integers(0, ROWS, samples) for name in FIELDS}
    labels = random.integers(0, 2, (num_tasks, samples)).astype(np.int8)
    columns |= {f"task{k}": labels[k] for k in range(num_tasks)}
    (folder / "train").mkdir()
    pq.write_table(pa.table(columns), folder / "train/0.parquet")


def job(folder: Path, method: str, num_tasks: int, batch_size: int) -> Job:
    dense, fused = {"name": "adam"}, {"name": "rowwise_adagrad"}
    if method == "adatask":  # is itself the optimiser
        dense = fused = {"name": "sgd"}
    tree = {
        "data": {"source": str(folder)},
        "features": {name: {"kind": "id"} for name in FIELDS},
        "tasks": {f"task{k}": {} for k in range(num_tasks)},
        "embedding": {
            "tables": {name: {"rows": ROWS} for name in FIELDS},
            "optimizer": {**fused, "lr": 0.05},
        },
        "model": {
            "trunk": {"name": "mlp", "hidden": [256, 128]},
            "heads": {"name": "mmoe", "experts": 4, "hidden": [64], "tower": [32]},
        },
        "balance": {"name": method, **OPTIONS.get(method, {})},
        "train": {"batch_size": batch_size, "optimizer": {"dense": {**dense, "lr": 1e-3}}},
    }
    return validate(Job, tree, "bench balancing")


def stepper(job: Job, batches: list[Batch]) -> Callable[[int], float]:
    """Trains on one batch after the other; returns the seconds of a step."""
    model = build_model(job, torch.device("cpu")).model
    optimizer = StepOptimizer(job.train.optimizer, model, num_steps=10**6)
    balancer: Any = model.module.balancer
    balancer.begin(10**6)
    balancer.is_logged = False
    model.train()

    def step(number: int) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        losses, _ = model(batches[number % len(batches)])
        losses.sum().backward()
        optimizer.step()
        if balancer.looks_again:
            with torch.no_grad():
                _, (losses, _) = model(batches[number % len(batches)])
            balancer.after_update(global_losses(losses))
        return time.perf_counter() - start

    return step


def dense_backward(job: Job, batches: list[Batch]) -> Callable[[int], float]:
    """Differentiates the first task's loss; returns the seconds of it."""
    model: Any = build_model(job, torch.device("cpu")).model.module
    parameters = list(model.network.parameters())

    def differentiate(number: int) -> float:
        batch = batches[number % len(batches)]
        found = [o.wait() if isinstance(o, Awaitable) else o for o in model.tables(batch)]
        losses = model.losses(model.network(batch, found), batch)
        inputs = [*(output.values() for output in found), *parameters]
        start = time.perf_counter()
        torch.autograd.grad(losses[0], inputs, allow_unused=True)
        return time.perf_counter() - start

    return differentiate


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench balancing", description=__doc__)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20, help="of each method")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the process; all cores if not given")
    parser.add_argument("--methods", nargs="+", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    methods = list(dict.fromkeys(["equal", *options.methods]))
    with tempfile.TemporaryDirectory() as name, process_group(threads=options.threads):
        folder, size = Path(name), options.batch_size
        write_data(folder, 8 * size, options.tasks)
        plain = job(folder, "equal", options.tasks, size)
        files = plain.data.files("train")
        reader = Reader(files, plain.data_schema, plain.data.reader, size, seed=0)
        batches = list(reader.read(Position(), 1))
        steps = {DENSE: dense_backward(plain, batches)}
        steps |= {m: stepper(job(folder, m, options.tasks, size), batches) for m in methods}
        seconds: dict[str, list[float]] = {contender: [] for contender in steps}
        for number in range(options.warmup + options.steps):
            for contender, step in steps.items():
                taken = step(number)
                if number >= options.warmup:
                    seconds[contender].append(taken)
    medians = {contender: statistics.median(found) for contender, found in seconds.items()}
    dense = medians.pop(DENSE)
    bound = medians["equal"] + (options.tasks - 1) * dense
    print(f"{DENSE}: {1000 * dense:.2f} ms of {options.tasks} tasks'")
    print(f"{'method':12} {'step, ms':>9} {'x equal':>8} {'of its bound':>13}")
    found: dict[str, dict[str, float]] = {}
    for method, median in medians.items():
        row = {"step_ms": 1000 * median, "ratio": median / medians["equal"]}
        if method in BALANCERS and issubclass(BALANCERS[method], GradientBalancer):
            row["of_bound"] = median / bound
        found[method] = row
        last = f"{row['of_bound']:13.3f}" if "of_bound" in row else ""
        print(f"{method:12} {row['step_ms']:9.2f} {row['ratio']:8.3f} {last}")
    if options.output:
        versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        results = {"methods": found, "dense_backward_ms": 1000 * dense, **versions}
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
