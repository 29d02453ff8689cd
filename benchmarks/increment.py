# SPDX-License-Identifier: Apache-2.0
"""How large an incremental checkpoint is, and whether it restores every bit.

    deltarec bench increment --rows 10000000 --changed 0.01

One process trains one table, by batches of uniform ids without repeats, from a whole checkpoint on
until the wanted share of its rows has changed; then it writes an increment. Both are read into a
second model, and every tensor of it is compared.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from deltarec.changed_rows import chain
from deltarec.checkpoint import TrainState
from deltarec.config import validate
from deltarec.data.batch import Position
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer

BATCH = 5_000


def job(folder: Path, rows: int, dim: int, precision: str, optimizer: str) -> Job:
    config = {
        "data": {"source": str(folder), "train": ["0.parquet"]},
        "features": {"id": {"kind": "id"}},
        "tasks": {"label": {}},
        "embedding": {
            "dim": dim,
            "precision": precision,
            "optimizer": {"name": optimizer, "lr": 0.1},
            "tables": {"id": {"rows": rows, "sharding": "row_wise"}},
        },
        "model": {"trunk": {"name": "mlp", "hidden": [64]}, "heads": {"name": "shared_bottom"}},
        "train": {"batch_size": BATCH, "checkpoint": {"full_every": 2, "asynchronous": False}},
    }
    return validate(Job, config, "bench increment")


def write_ids(folder: Path, rows: int, changed: int) -> None:
    """So many different ids."""
    random = np.random.default_rng(0)
    ids = random.choice(rows, changed, replace=False)
    label = random.integers(0, 2, changed, dtype=np.int8)
    pq.write_table(pa.table({"id": ids, "label": label}), folder / "0.parquet")


def measure(folder: Path, options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Bytes and seconds of both checkpoints, and of reading them."""
    config = job(folder, options.rows, options.dim, precision, options.optimizer)
    run = folder / precision
    with process_group() as device:
        trainer = Trainer(config, RunFolder(run), device)
        trainer.optimizer.init_state()
        whole = timed(lambda: trainer.checkpoints.save(TrainState()))
        batches = trainer.reader.read(Position(), epochs=1)
        for _ in range(trainer.num_steps):
            trainer.pipeline.progress(batches)
        increment = timed(lambda: trainer.checkpoints.save(TrainState(step=trainer.num_steps)))
        latest = trainer.checkpoints.find("latest")
        assert latest is not None
        other = Trainer(config, RunFolder(run), device)
        reading = timed(other.checkpoints.load)
        differing = [
            name
            for (name, mine), (_, theirs) in zip(parts(trainer), parts(other), strict=True)
            if not torch.equal(mine, theirs)
        ]
        assert not differing, differing
        sizes = [num_bytes(path) for path in chain(latest)]
    return {
        "whole_bytes": sizes[0],
        "increment_bytes": sizes[1],
        "share": sizes[1] / sizes[0],
        "whole_seconds": whole,
        "increment_seconds": increment,
        "restore_seconds": reading,
    }


def parts(trainer: Trainer) -> list[tuple[str, torch.Tensor]]:
    """Every tensor of this rank's, weights and optimisers' state, by name."""
    sections = [trainer.model.state_dict()]
    sections += trainer.optimizer.combined.state_dict()["state"].values()  # pyright: ignore
    found = []
    for section in sections:
        for name, value in section.items():
            shards = value.local_shards() if hasattr(value, "local_shards") else None
            tensors = [value] if shards is None else [shard.tensor for shard in shards]
            found += [(name, tensor) for tensor in tensors]
    return found


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def timed(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench increment", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--changed", type=float, default=0.01, help="share of the rows")
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--optimizer", default="rowwise_adagrad")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if not given")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    results = {}
    print("table   whole, MB  increment, MB   share  write, s  increment, s  restore, s")
    for precision in options.precision:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_ids(Path(folder), options.rows, round(options.changed * options.rows))
            results[precision] = found = measure(Path(folder), options, precision)
        print(
            f"{precision:6} {found['whole_bytes'] / 1e6:10,.1f} "
            f"{found['increment_bytes'] / 1e6:14,.2f} {found['share']:7.2%} "
            f"{found['whole_seconds']:9.2f} {found['increment_seconds']:13.2f} "
            f"{found['restore_seconds']:11.2f}"
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
