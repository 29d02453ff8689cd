# SPDX-License-Identifier: Apache-2.0
"""TorchX components: how a job is started on one machine or on many.

torchx run launch/components.py:train --config configs/adult_demo.yaml --nproc 2
"""

import os
import sys
from pathlib import Path

import torchx.specs as specs
from torchx.components.dist import ddp


def train(
    *overrides: str,
    config: str,
    nodes: int = 1,
    nproc: int = 1,
    run_dir: str = "",
    image: str = "",
    cpu: int = 1,
    gpu: int = 0,
    memory_mb: int = 4096,
) -> specs.AppDef:
    """Trains a job on one or several machines.

    Args:
        overrides: path.to.key=value, each overrides one key of the configuration
        config: the job's YAML file, as a path on the machines
        nodes: machines
        nproc: processes a machine; on GPU machines, as many as GPUs
        run_dir: run folder, seen by all machines; runs/NAME-TIME if not given
        image: container image that holds the project; without one, this folder and this Python
        cpu: cores a process asks the scheduler for
        gpu: GPUs a process asks the scheduler for
        memory_mb: memory a process asks the scheduler for
    """
    arguments = ["train", "--config", config]
    if run_dir:
        arguments += ["--run-dir", run_dir]
    for override in overrides:
        arguments += ["--set", override]
    return ddp(
        *arguments,
        m="deltarec.cli",
        name="/train",
        image=image or os.getcwd(),
        env={} if image else _this_environment(),
        j=f"{nodes}x{nproc}",
        cpu=cpu * nproc,
        gpu=gpu * nproc,
        memMB=memory_mb * nproc,
    )


def _this_environment() -> dict[str, str]:
    """This Python first in the path, and the packages from their source roots.

    TorchX executes this file without telling it its own path, so the working directory says where
    the repository is.
    """
    programs, root = Path(sys.executable).parent, Path.cwd()
    return {
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(root / "pipeline"), str(root / "kernels")]),
    }
