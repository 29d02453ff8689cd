# SPDX-License-Identifier: Apache-2.0
"""A stream that is watched while its partitions come, and a job that is killed at any moment."""

import json
import os
import pickle
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deltarec.config import validate
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.streaming import StreamTrainer
from deltarec.supervision import Terminated
from tests.conftest import run_ranks, start_ranks
from tests.end_to_end.ranks import assert_same_end

PARTITIONS, ROWS = 50, 40


def tiny_job(folder: Path) -> Job:
    config = {
        "data": {"source": str(folder), "train": ["date=*"]},
        "stream": {"warmup": 2, "poll_seconds": 0.02},
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
        "tasks": {"click": {}},
        "embedding": {
            "dim": 4,
            "tables": {
                "user": {"rows": 500, "sharding": "row_wise"},
                "item": {"rows": 120, "assignment": {"policy": "autoassign", "buckets": 4}},
            },
        },
        "model": {"trunk": {"name": "mlp", "hidden": [4]}, "heads": {"name": "shared_bottom"}},
        "train": {
            "batch_size": 20,
            "log_every": 1,
            # The last of 50 checkpoints is whole, and most restarts go through increments.
            "checkpoint": {"full_every": 7, "keep": 1},
        },
    }
    return validate(Job, config, "tiny_job")


def write(folder: Path, number: int) -> None:
    """One partition, its marker last."""
    draw = np.random.default_rng(number)
    target = folder / f"date=2026-01-{1 + number // 24:02}" / f"hour={number % 24:02}"
    target.mkdir(parents=True)
    ids = {name: draw.integers(0, 500, ROWS) for name in ("user", "item")}
    click = (ids["user"] + ids["item"]) % 2
    pq.write_table(pa.table({**ids, "click": click}), target / "0.parquet")
    (target / "_SUCCESS").touch()


def watch(run: Path, job: Job) -> None:
    StreamTrainer(job, RunFolder(run), torch.device("cpu"), watch=True).fit()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that found everything there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for number in range(PARTITIONS):
        write(folder, number)
    (folder / "_END").touch()
    run_ranks(1, watch, folder / "run", tiny_job(folder))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4])
def test_killed_while_partitions_come(undisturbed: Path, tmp_path: Path, kills: int):
    """No partition is skipped or trained on twice; the end is that of the undisturbed run."""
    draw, job, run = random.Random(kills), tiny_job(tmp_path), tmp_path / "run"

    def come() -> None:
        for number in range(PARTITIONS):
            write(tmp_path, number)
            time.sleep(0.1)
        (tmp_path / "_END").touch()

    writer = threading.Thread(target=come)
    writer.start()
    for attempt in range(kills):
        begun = saved(run)
        ranks = start(tmp_path / f"attempt_{attempt}", run, job)
        deadline = time.monotonic() + 60
        while len(saved(run)) <= len(begun) and time.monotonic() < deadline:
            if not ranks[0].is_alive():
                break
            time.sleep(0.01)
        time.sleep(draw.random() * 0.5)
        ranks[0].kill()
        ranks[0].join()
    last = start(tmp_path / "last", run, job)
    last[0].join(120)
    writer.join()
    done, failure = pickle.loads((tmp_path / "last" / "result_0").read_bytes())
    assert done, failure
    names = [f"date=2026-01-{1 + n // 24:02}/hour={n % 24:02}" for n in range(PARTITIONS)]
    assert saved(run) == names
    result = json.loads((run / "result.json").read_text())
    assert [partition["partition"] for partition in result["partitions"]] == names[2:]
    assert result["samples"] == PARTITIONS * ROWS
    assert_same_end(run, undisturbed)


def start(folder: Path, run: Path, job: Job) -> list[Any]:
    folder.mkdir()
    return start_ranks(str(folder), 1, watch, run, job)


def saved(run: Path) -> list[str]:
    """The partitions that the latest checkpoint has."""
    folder = run / "checkpoints"
    while True:
        try:
            name = (folder / "latest").read_text().strip()
            return json.loads((folder / name / "state.json").read_text())["partitions"]
        except FileNotFoundError:
            if not (folder / "latest").is_file():
                return []  # or it was replaced, and the folder that it named is gone


@pytest.mark.parametrize("end", ["marker", "idle", "sigterm"])
def test_ends(tmp_path: Path, one_process: torch.device, end: str):
    write(tmp_path, 0)
    job = tiny_job(tmp_path)
    if end == "marker":
        (tmp_path / "_END").touch()
    if end == "idle":
        stream = job.stream.model_copy(update={"idle_seconds": 0.1})  # pyright: ignore
        job = job.model_copy(update={"stream": stream})
    trainer = StreamTrainer(job, RunFolder(tmp_path / "run"), one_process, watch=True)
    if end != "sigterm":
        assert trainer.fit()["steps"] == 2
        return
    told = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    told.start()
    with pytest.raises(Terminated, match="told to end"):
        trainer.fit()
    assert len(saved(tmp_path / "run")) == 1
