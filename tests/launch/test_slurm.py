# SPDX-License-Identifier: Apache-2.0
"""On a real Slurm: a job whose processes are killed is queued again, resumes, and ends the same.

Needs two nodes on this machine. Slurm lets two minutes pass before a job that was queued again
starts, so the undisturbed one runs meanwhile.
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.launch.jobs import torchx_train, write_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def slurm(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def two_nodes() -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("there is no Slurm here: sbatch is not installed")
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle,mixed,allocated", "-O", "NodeList,NodeHost"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        pytest.skip(f"no Slurm answers: {found.stderr.strip().splitlines()[-1]}")
    nodes = dict(line.split() for line in found.stdout.splitlines())
    if list(nodes.values()).count(socket.gethostname()) < 2:
        pytest.skip(
            f"two nodes on this machine are needed, to kill one's process; there are {nodes}"
        )


def submit(config: Path, run_dir: Path) -> str:
    """The id of a job; TorchX prints it first, and then fails where Slurm keeps no accounts."""
    started = torchx_train("slurm", config, run_dir)
    handle = started.stdout.strip()
    assert handle.startswith("slurm://"), started.stderr
    return handle.rpartition("/")[2]


def wait_until(what: str, true: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain until {what}"
        time.sleep(0.2)


def test_a_killed_job_is_queued_again_and_ends_like_an_undisturbed_one(
    two_nodes: None, tmp_path: Path
):
    config = write_job(tmp_path, epochs=10)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = submit(config, killed)
    second = submit(config, whole)
    try:
        wait_until("a checkpoint is there", (killed / "checkpoints" / "latest").is_file)
        rank_process(first, rank=3).kill()
        wait_until("the job is queued again", lambda: set(states(first).values()) == {"PENDING"})
        assert not (killed / "result.json").exists()
        for run in (killed, whole):
            wait_until(f"{run.name} has ended", (run / "result.json").is_file)
        wait_until("the queue is empty", lambda: not states(first) | states(second))
    finally:
        slurm("scancel", "--quiet", first, second)
    results = [json.loads((run / "result.json").read_text()) for run in (killed, whole)]
    assert results[0]["steps"] == results[1]["steps"] == 200
    assert results[0]["samples"] == results[1]["samples"] == 20_000
    assert results[0]["valid"] == results[1]["valid"], "bit for bit"
    assert len(losses(whole)) == 200
    assert losses(killed) == losses(whole)


def states(job: str) -> dict[str, str]:
    """The states of a job's parts, one a node, by their ids; nothing once it has ended."""
    lines = [line.split() for line in slurm("squeue", "-h", "-o", "%i %A %T").splitlines()]
    return {part: state for name, part, state in lines if name.partition("+")[0] == job}


def rank_process(job: str, rank: int) -> psutil.Process:
    """One of the processes that train, by what Slurm and torchrun say in its environment."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        names = {"SLURM_JOB_ID": job, "RANK": str(rank)}
        if names.items() <= environment.items():
            return process
    raise AssertionError(f"job {job} has no process of rank {rank} on this machine")


def losses(run: Path) -> list[tuple[int, float]]:
    """The loss of each step, bit for bit."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss/click"]) for line in lines if line["split"] == "train"]
