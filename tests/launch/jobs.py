# SPDX-License-Identifier: Apache-2.0
"""A small job as a file, started by `torchx run` as users start it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT
from tests.small_job import CONFIG, write_small_data


def write_job(folder: Path, epochs: int) -> Path:
    """A configuration with its data beside it; 20 steps an epoch, a checkpoint every 10."""
    write_small_data(folder / "data")
    train = {"epochs": epochs, "evaluate_every": 20 * epochs, "checkpoint": {"every": 10}}
    job = {
        **CONFIG,
        "data": {**CONFIG["data"], "source": str(folder / "data")},
        "train": {**CONFIG["train"], **train},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    return folder / "job.yaml"


def torchx_train(
    scheduler: str, config: Path, run_dir: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    """Start a job on 2 nodes of 2 processes, from the configuration's folder."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    options = {
        "config": config,
        "run_dir": run_dir,
        "nodes": 2,
        "nproc": 2,
        "memory_mb": 1000,
        "port": port,
        "env": f"PYTHONPATH={ROOT}/pipeline{os.pathsep}{ROOT}/kernels",
    }
    words = [str(Path(sys.executable).with_name("torchx")), "run", "-s", scheduler, *more]
    words.append(f"{ROOT}/launch/components.py:train")
    words += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return subprocess.run(words, cwd=config.parent, capture_output=True, text=True)
