# SPDX-License-Identifier: Apache-2.0
"""A rank that hangs ends the job: every rank that can says where it waits."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec import evaluator, stored_tensors
from deltarec.distributed import rank
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import start_ranks
from tests.small_job import small_job, write_small_data

HANG_SECONDS = 8.0


def sleep_for_ever() -> None:
    if rank() == 1:
        time.sleep(3600)


def stop_this_process() -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


class InStep(Trainer):
    """Hangs in its third step."""

    hang = staticmethod(sleep_for_ever)

    def _train_step(self, batches: Any) -> torch.Tensor:
        if self.state.step == 2:
            self.hang()
        return super()._train_step(batches)


class Stopped(InStep):
    """Is stopped in its third step, as by a debugger or a dead machine."""

    hang = staticmethod(stop_this_process)


class InEvaluation(Trainer):
    """Hangs before the second batch of its evaluation."""

    def _fit(self) -> dict[str, Any]:
        open_reader = evaluator.open_reader

        def opened(*arguments: Any) -> Any:
            reader = open_reader(*arguments)
            read = reader.read

            def hanging(*arguments: Any, **options: Any) -> Any:
                for number, batch in enumerate(read(*arguments, **options)):
                    if number == 1:
                        sleep_for_ever()
                    yield batch

            reader.read = hanging  # pyright: ignore
            return reader

        evaluator.open_reader = opened
        return super()._fit()


class InCheckpoint(Trainer):
    """Hangs when it writes, while training goes on."""

    def _fit(self) -> dict[str, Any]:
        write = stored_tensors.write
        stored_tensors.write = lambda *arguments: (sleep_for_ever(), write(*arguments))  # pyright: ignore
        return super()._fit()


KINDS: dict[str, type[Trainer]] = {
    "step": InStep,
    "stopped": Stopped,
    "evaluation": InEvaluation,
    "checkpoint": InCheckpoint,
}


def train(folder: Path, job: Job, kind: str) -> None:
    log = os.open(folder / f"stderr_{rank()}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, sys.stderr.fileno())
    KINDS[kind](job, RunFolder(folder / "run"), torch.device("cpu")).fit()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    """All jobs, at the same time: most of it is waiting. Gives what a rank of one said."""
    data = tmp_path_factory.mktemp("data")
    write_small_data(data)
    options = {"hang_seconds": HANG_SECONDS, "evaluate_every": 4, "max_steps": 8}
    job = small_job(data, **{f"train__{key}": value for key, value in options.items()})
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    jobs = {
        kind: start_ranks(str(folder), 2, train, folder, job, kind)
        for kind, folder in folders.items()
    }
    for kind, ranks in jobs.items():
        ranks[0].join(180)
        assert ranks[0].exitcode == 1, f"{kind}: {ranks[0].exitcode}"
        if kind == "stopped":
            ranks[1].kill()  # as a launcher does
        ranks[1].join(30)
        assert not ranks[1].is_alive(), kind
    return lambda kind, number: (folders[kind] / f"stderr_{number}").read_text()


def test_the_rank_that_sleeps_and_the_one_that_waits_say_where(told: Callable[[str, int], str]):
    for number in (0, 1):
        assert f"deltarec: rank {number}: training has made no progress for " in told(
            "step", number
        )
        assert f"train.hang_seconds is {HANG_SECONDS:.0f}" in told("step", number)
    assert "test_hangs.py" in told("step", 1) and "in sleep_for_ever" in told("step", 1)
    assert "it waits in" in told("step", 0) and f"{os.sep}deltarec{os.sep}" in told("step", 0)


def test_a_stopped_process_ends_the_job(told: Callable[[str, int], str]):
    assert "deltarec: rank 0: training has made no progress" in told("stopped", 0)


def test_an_evaluation_is_watched(told: Callable[[str, int], str]):
    for number in (0, 1):
        assert "the evaluation on valid has made no progress" in told("evaluation", number)
    assert "in sleep_for_ever" in told("evaluation", 1)


def test_the_writing_of_a_checkpoint_is_watched(told: Callable[[str, int], str]):
    for number in (0, 1):
        assert "writing a checkpoint has made no progress" in told("checkpoint", number)
    assert "in sleep_for_ever" in told("checkpoint", 1)
    assert "stored_tensors.py" in told("checkpoint", 0)
