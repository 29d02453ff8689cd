# SPDX-License-Identifier: Apache-2.0
"""TorchX components: how a verb is started on one machine or on many.

torchx run launch/components.py:train --config configs/adult_demo.yaml --nproc 2

TorchX reads this file alone: names, types and docstrings of a function are its command line. What
the schedulers make of it, retries and grace times: docs/launching.md.
"""

import os
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torchx.specs as specs
from torchx.components.dist import ddp


def train(
    *overrides: str,
    config: str,
    run_dir: str = "",
    nodes: int = 1,
    nproc: int = 1,
    image: str = "",
    cpu: int = 1,
    gpu: int = 0,
    memory_mb: int = 4096,
    retries: int = 3,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    port: int = 29500,
) -> specs.AppDef:
    """Trains a job on one or several machines; what is started again resumes.

    Args:
        overrides: path.to.key=value, each overrides one key of the configuration
        config: the job's YAML file, as a path on the machines
        run_dir: run folder, seen by all machines; runs/NAME-ID with the scheduler's id if not given
        nodes: machines
        nproc: processes a machine; on GPU machines, as many as GPUs
        image: container image that holds the project; without one, this folder and this Python
        cpu: cores a process asks the scheduler for
        gpu: GPUs a process asks the scheduler for
        memory_mb: memory a process asks the scheduler for
        retries: how often the scheduler starts the job again after it failed, for whatever reason
        mounts: type=bind,src=PATH,dst=PATH or type=volume,src=CLAIM,dst=PATH; with an image
        env: environment of the processes, NAME=value,NAME=value
        port: where several machines meet, on the first of them
    """
    folder = run_dir or f"runs/{Path(config).stem}-{specs.macros.app_id}"
    arguments = ["train", "--config", config, "--run-dir", folder]
    for override in overrides:
        arguments += ["--set", override]
    return ddp(
        *arguments,
        m="deltarec.cli",
        name="/train",
        image=image or os.getcwd(),
        env=_environment(image, env),
        j=f"{nodes}x{nproc}",
        cpu=cpu * nproc,
        gpu=gpu * nproc,
        memMB=memory_mb * nproc,
        max_retries=retries,
        mounts=mounts,
        rdzv_port=port,
    )


def predict(
    *keys: str,
    run_dir: str,
    source: str = "",
    files: Optional[List[str]] = None,
    checkpoint: str = "",
    output: str = "",
    nodes: int = 1,
    nproc: int = 1,
    image: str = "",
    cpu: int = 1,
    gpu: int = 0,
    memory_mb: int = 4096,
    retries: int = 3,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    port: int = 29500,
) -> specs.AppDef:
    """Scores rows by a run's checkpoint; what is started again goes on after the finished files.

    Args:
        keys: columns that are copied beside the scores
        run_dir: the run folder, seen by all machines
        source: folder or URL of the rows; the job's own data if not given
        files: files, folders or globs there, with commas between; the test data if not given
        checkpoint: best or latest; the best one where there is one if not given
        output: folder to write, seen by all machines; RUN/predictions if not given
        nodes: machines
        nproc: processes a machine; on GPU machines, as many as GPUs
        image: container image that holds the project; without one, this folder and this Python
        cpu: cores a process asks the scheduler for
        gpu: GPUs a process asks the scheduler for
        memory_mb: memory a process asks the scheduler for
        retries: how often the scheduler starts the job again after it failed, for whatever reason
        mounts: type=bind,src=PATH,dst=PATH or type=volume,src=CLAIM,dst=PATH; with an image
        env: environment of the processes, NAME=value,NAME=value
        port: where several machines meet, on the first of them
    """
    arguments = ["predict", "--run-dir", run_dir, "--keys", *keys]
    for option, value in (("source", source), ("checkpoint", checkpoint), ("output", output)):
        arguments += [f"--{option}", value] if value else []
    arguments += ["--files", *files] if files else []
    return ddp(
        *arguments,
        m="deltarec.cli",
        name="/predict",
        image=image or os.getcwd(),
        env=_environment(image, env),
        j=f"{nodes}x{nproc}",
        cpu=cpu * nproc,
        gpu=gpu * nproc,
        memMB=memory_mb * nproc,
        max_retries=retries,
        mounts=mounts,
        rdzv_port=port,
    )


def sweep(
    *arguments: str,
    config: str,
    run_dir: str,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 8192,
    retries: int = 3,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Trains variants of a job over seeds on one machine; what is started again goes on.

    Args:
        arguments: of the verb after a lone --, such as --grid, --seeds and --jobs
        config: the job's YAML file, as a path on the machine
        run_dir: folder of the sweep, which outlives the machine
        image: container image that holds the project; without one, this folder and this Python
        cpu: cores to ask the scheduler for; all processes at work share them
        gpu: GPUs to ask the scheduler for
        memory_mb: memory to ask the scheduler for
        retries: how often the scheduler starts it again after it, or one of its runs, failed
        mounts: type=bind,src=PATH,dst=PATH or type=volume,src=CLAIM,dst=PATH; with an image
        env: environment of the processes, NAME=value,NAME=value
    """
    role = specs.Role(
        name="sweep",
        image=image or os.getcwd(),
        entrypoint="python",
        args=["-m", "deltarec.cli", "sweep", "--config", config, "--run-dir", run_dir, *arguments],
        env=_environment(image, env),
        resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
        max_retries=retries,
        mounts=specs.parse_mounts(mounts or []),
    )
    return specs.AppDef(name="sweep", roles=[role])


def bench(
    *arguments: str,
    name: str,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memory_mb: int = 8192,
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
) -> specs.AppDef:
    """Runs a benchmark on one machine.

    Args:
        arguments: for the benchmark itself, after a lone --
        name: the benchmark, such as reader or train
        image: container image that holds the project; without one, this folder and this Python
        cpu: cores to ask the scheduler for
        gpu: GPUs to ask the scheduler for
        memory_mb: memory to ask the scheduler for
        mounts: type=bind,src=PATH,dst=PATH or type=volume,src=CLAIM,dst=PATH; with an image
        env: environment of the process, NAME=value,NAME=value
    """
    role = specs.Role(
        name="bench",
        image=image or os.getcwd(),
        entrypoint="python",
        args=["-m", "deltarec.cli", "bench", name, *arguments],
        env=_environment(image, env),
        resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mb),
        mounts=specs.parse_mounts(mounts or []),
    )
    return specs.AppDef(name="bench", roles=[role])


def _environment(image: str, given: Optional[Dict[str, str]]) -> Dict[str, str]:
    """What is given; without an image, this Python and the packages from their source roots too.

    TorchX executes this file without telling it its own path, so the working directory says where
    the repository is.
    """
    if image:
        return dict(given or {})
    programs, root = Path(sys.executable).parent, Path.cwd()
    return {
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(root / "pipeline"), str(root / "kernels")]),
        **(given or {}),
    }
