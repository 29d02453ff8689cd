# SPDX-License-Identifier: Apache-2.0
"""Real processes that train and are killed, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

LAUNCH = [sys.executable, "-m", "deltarec.cli", "train"]


def logged(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what depends on time."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in records]


def stored(run: Path, pointer: str = "latest") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole: weights, states of optimisers, of generators."""
    folder = run / "checkpoints"
    reader = FileSystemReader(folder / (folder / pointer).read_text().strip())
    index = reader.read_metadata().state_dict_metadata
    tensors = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in index.items()}  # pyright: ignore
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Weights, optimisers and metrics are those of the other run, bit for bit."""
    assert logged(run) == logged(undisturbed)
    mine, theirs = stored(run), stored(undisturbed)
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("optimizer.tables.") for name in mine)
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    mine, theirs = (json.loads((r / "result.json").read_text()) for r in (run, undisturbed))
    for key in ("steps", "samples", "valid", "stream", "partitions"):
        assert mine.get(key) == theirs.get(key), key


def wait_for_step(run: Path, step: int, process: Any, seconds: float = 240) -> None:
    """Wait until a run has logged a step, or its process has ended."""
    deadline = time.monotonic() + seconds
    while not any(record["step"] >= step for record in logged(run)):
        alive = process.poll() is None if hasattr(process, "poll") else process.is_alive()
        assert alive, f"the job ended before step {step}"
        assert time.monotonic() < deadline, f"no step {step} after {seconds} s"
        time.sleep(0.02)


def launch(job: Path, run: Path, log: Path, num_processes: int = 2) -> subprocess.Popen[bytes]:
    """`deltarec train --nproc`, its standard error in a file."""
    command = [*LAUNCH, "--config", job, "--run-dir", run, "--nproc", num_processes]
    with log.open("wb") as file:
        return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=file)


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher started as ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    environments = {int(c): Path(f"/proc/{c}/environ").read_bytes() for c in children}
    return [child for child, environment in environments.items() if b"\0RANK=" in environment]


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
