# SPDX-License-Identifier: Apache-2.0
"""A job that is killed, and started again by the same command, ends as if nothing had been."""

import pickle
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from deltarec import config
from deltarec.checkpoint import TrainState
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks, start_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.end_to_end.ranks import assert_same_end, kill, launch, ranks_of, wait_for_step
from tests.small_job import small_job, write_small_data

SOON = 60
"""Seconds within which the other ranks of a killed one must have ended; far below a hang's."""


def train(run: Path, job: Job) -> None:
    Trainer(job, RunFolder(run), torch.device("cpu")).fit()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """60 steps; checkpoints, evaluations and epochs end at different ones."""
    data = tmp_path_factory.mktemp("data")
    write_small_data(data)
    return small_job(
        data,
        train__epochs=3,
        train__evaluate_every=25,
        train__checkpoint={"every": 7},
        train__optimizer__schedule={"name": "cosine", "warmup_steps": 5},
    )


@pytest.fixture(scope="module")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    run_ranks(2, train, run, job)
    return run


def test_a_rank_killed_at_five_random_moments(job: Job, undisturbed: Path, tmp_path: Path):
    draw = random.Random(5)
    run = tmp_path / "run"
    for attempt, step in enumerate(sorted(draw.sample(range(1, 60), 5))):
        folder = tmp_path / f"attempt_{attempt}"
        folder.mkdir()
        ranks = start_ranks(str(folder), 2, train, run, job)
        wait_for_step(run, step, ranks[0])
        time.sleep(draw.random() * 0.1)
        victim = draw.randrange(2)
        ranks[victim].kill()
        ranks[1 - victim].join(SOON)
        assert not ranks[1 - victim].is_alive(), "the other rank waits for the dead one"
        succeeded, reason = pickle.loads((folder / f"result_{1 - victim}").read_bytes())
        assert not succeeded and "peer" in reason
    run_ranks(2, train, run, job)
    assert_same_end(run, undisturbed)


def test_the_command_killed_then_terminated(job: Job, undisturbed: Path, tmp_path: Path):
    """By the launcher: one rank is killed, then the job gets SIGTERM; it can be resumed."""
    run, file, log = tmp_path / "run", tmp_path / "job.yaml", tmp_path / "log"
    file.write_text(config.dump(job))

    launcher = launch(file, run, log)
    wait_for_step(run, 20, launcher)
    kill(ranks_of(launcher.pid)[1])
    assert code(launcher, log) == 1
    told = log.read_text()
    assert "deltarec: rank 0: another rank has ended" in told and "Traceback" not in told
    assert "deltarec: rank 1 was ended by SIGKILL; the same command resumes" in told

    launcher = launch(file, run, log)
    wait_for_step(run, 40, launcher)
    launcher.send_signal(signal.SIGTERM)
    assert code(launcher, log) == 75, log.read_text()
    assert "the same command resumes" in log.read_text()
    assert 40 <= saved_step(run) < 60

    run_ranks(2, train, run, job)
    assert_same_end(run, undisturbed)


def code(launcher: subprocess.Popen[bytes], log: Path) -> int:
    """The exit code; a launcher that does not end is killed, and the log shown."""
    try:
        return launcher.wait(4 * SOON)
    except subprocess.TimeoutExpired:
        launcher.kill()
        raise AssertionError(log.read_text()) from None


def saved_step(run: Path) -> int:
    return int((run / "checkpoints" / "latest").read_text()[5:14])


def save_for_ever(run: Path, job: Job) -> None:
    """Saves over and over; every table is filled with the number of the step."""
    trainer = Trainer(job, RunFolder(run), torch.device("cpu"))
    trainer.optimizer.init_state()  # which it has after a step
    found = trainer.checkpoints.find("latest")
    step = int(found.name[5:14]) if found else 0
    while True:
        step += 1
        for name, value in trainer.model.state_dict().items():
            if name.startswith("tables."):
                shards = value.local_shards() if hasattr(value, "local_shards") else None
                for tensor in [s.tensor for s in shards] if shards is not None else [value]:
                    tensor.detach().fill_(step)
        trainer.checkpoints.save(TrainState(step=step), best=step % 3 == 0)
        while trainer.checkpoints.is_copying:  # tables change by training only, until it is over
            trainer.checkpoints.after_step()


def test_killed_while_it_writes_a_checkpoint(tmp_path: Path, job: Job, one_process: torch.device):
    """20 times; what `latest` and `best` name always loads, and is of one moment."""
    draw = random.Random(20)
    large = {f"embedding__tables__{name}__rows": 100_000 for name in ("user", "scores")}
    big = small_job(Path(job.data.source), **large)
    run = tmp_path / "run"
    reader = Trainer(big, RunFolder(run), one_process)
    half_written = 0
    for attempt in range(20):
        folder = tmp_path / f"attempt_{attempt}"
        folder.mkdir()
        ranks = start_ranks(str(folder), 2, save_for_ever, run, big)
        before = reader.checkpoints.find("latest")
        while reader.checkpoints.find("latest") == before:
            assert ranks[0].is_alive() and ranks[1].is_alive()
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)
        for rank in draw.choice([[0, 1], [1, 0]]):
            ranks[rank].kill()
            time.sleep(draw.random() * 0.02)
        for rank in ranks:
            rank.join()
        half_written += bool(list(run.glob("checkpoints/*.partial")))
        for pointer in ("latest", "best"):
            if reader.checkpoints.find(pointer) is None:
                continue
            state = reader.checkpoints.load(pointer)
            for name, table in full_tables(reader.model).items():
                assert bool((table == state.step).all()), (attempt, pointer, name)
    assert half_written > 5, "hardly any kill fell into the writing"
