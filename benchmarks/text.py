# SPDX-License-Identifier: Apache-2.0
"""What frozen text vectors add to a training step, by adaptor and precision.

    deltarec bench text --output text.json

Eight id fields of 16 columns, heads mmoe of four experts 256-128 on two tasks, row-wise Adagrad;
beside them vectors of 384 columns for 4,000 items, a random one a sample, as a field of 16 columns;
or, for what any such field costs, a ninth id field.
One process, batches in memory. Contenders take turns, step by step; the table has the medians, and
their ratios to the job without text in the same run.
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

from deltarec.assembly import build_model
from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.optimizers import StepOptimizer

ITEMS, DIM, LEVELS, CODES = 4000, 384, 4, 256
FIELDS = [f"field{i}" for i in range(7)]
CONTENDERS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "without text": (None, ""),
    "a ninth id field": (None, "fp32"),
    "mlp, fp16": ({"name": "mlp"}, "fp16"),
    "mlp, int8": ({"name": "mlp"}, "int8"),
    "mlp, fp32": ({"name": "mlp"}, "fp32"),
    "hybrid_experts, fp16": ({"name": "hybrid_experts", "hidden": [128, 16]}, "fp16"),
    "whitened_mixture, fp16": ({"name": "whitened_mixture"}, "fp16"),
    "semantic_ids": ({"name": "semantic_ids", "size": CODES}, "fp32"),
}


def write_data(folder: Path, samples: int) -> None:
    random = np.random.default_rng(0)
    ids = {name: random.integers(0, 1000, samples) for name in FIELDS}
    labels = {name: random.integers(0, 2, samples).astype(np.int8) for name in ("like", "buy")}
    rows = pa.table({"item": random.integers(0, ITEMS, samples), **ids, **labels})
    (folder / "train").mkdir()
    pq.write_table(rows, folder / "train/0.parquet")
    vectors = random.normal(size=(ITEMS, DIM)).astype(np.float16)
    codes = random.integers(1, CODES + 1, (ITEMS, LEVELS)).astype(np.int32)
    for name, values in (("vectors", vectors), ("codes", codes)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        pq.write_table(pa.table({"id": np.arange(ITEMS), name: lists}), folder / f"{name}.parquet")


def job(folder: Path, adaptor: dict[str, Any] | None, precision: str, batch_size: int) -> Job:
    names = ["item", *FIELDS]
    features: dict[str, Any] = {name: {"kind": "id"} for name in names}
    tables: dict[str, Any] = {n: {"rows": ITEMS if n == "item" else 1000} for n in names}
    model: dict[str, Any] = {
        "trunk": {"name": "mlp", "hidden": []},
        "heads": {"name": "mmoe", "experts": 4, "hidden": [256, 128], "tower": [64]},
    }
    if precision:
        features["text"] = {"kind": "id", "column": "item"}
        tables["text"] = {"rows": ITEMS, "precision": precision}
    if adaptor is not None:
        column = "codes" if adaptor["name"] == "semantic_ids" else "vectors"
        source = {"source": str(folder / f"{column}.parquet"), "key": "id", "column": column}
        dim = LEVELS if column == "codes" else DIM
        tables["text"] |= {"dim": dim, "frozen": source}
        model["text"] = adaptor
    tree = {
        "data": {"source": str(folder)},
        "features": features,
        "tasks": {"like": {}, "buy": {}},
        "embedding": {"tables": tables},
        "model": model,
        "train": {"batch_size": batch_size},
    }
    return validate(Job, tree, "bench text")


def stepper(job: Job, batches: list[Batch]) -> Callable[[int], float]:
    """Trains on one batch after the other; returns the seconds of a step."""
    model = build_model(job, torch.device("cpu")).model
    optimizer = StepOptimizer(job.train.optimizer, model, num_steps=10**6)
    model.train()

    def step(number: int) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        losses, _ = model(batches[number % len(batches)])
        losses.sum().backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench text", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=40, help="of each contender")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the process; all cores if not given")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, process_group(threads=options.threads):
        folder = Path(name)
        write_data(folder, 8 * options.batch_size)
        steps = {}
        for contender, (adaptor, precision) in CONTENDERS.items():
            made = job(folder, adaptor, precision, options.batch_size)
            schema, size = made.data_schema, options.batch_size
            reader = Reader(made.data.files("train"), schema, made.data.reader, size, seed=0)
            steps[contender] = stepper(made, list(reader.read(Position(), 1)))
        seconds: dict[str, list[float]] = {contender: [] for contender in steps}
        for number in range(options.warmup + options.steps):
            for contender, step in steps.items():
                taken = step(number)
                if number >= options.warmup:
                    seconds[contender].append(taken)
    medians = {contender: statistics.median(found) for contender, found in seconds.items()}
    plain = next(iter(medians.values()))
    print(f"{'contender':24} {'step, ms':>9} {'ratio':>6}")
    for contender, median in medians.items():
        print(f"{contender:24} {1000 * median:9.2f} {median / plain:6.3f}")
    if options.output:
        found = {c: {"step_ms": 1000 * m, "ratio": m / plain} for c, m in medians.items()}
        versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        text = json.dumps({"contenders": found, **versions}, indent=2)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
