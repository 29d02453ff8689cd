# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.run_folder import RunFolder
from deltarec.snapshot import Snapshots
from deltarec.trainer import Trainer, _Batches
from tests.conftest import run_ranks
from tests.embeddings.quantised_job import quantised_job
from tests.small_job import write_small_data


def flat(tensors: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """This rank's parts, by name."""
    parts: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if isinstance(value, dict):
            parts |= flat(value, f"{prefix}{name}.")
        elif hasattr(value, "local_shards"):
            for number, shard in enumerate(value.local_shards()):
                parts[f"{prefix}{name}.{number}"] = shard.tensor
        else:
            parts[prefix + name] = value
    return parts


def beat() -> None:
    """The watchdog's part."""


def snapshot_while_training(folder: Path, settings: dict[str, Any]) -> set[str]:
    """Steps between the moment and its copy, piece by piece; returns the tensors that changed."""
    trainer = Trainer(
        quantised_job(folder, **settings), RunFolder(folder / "run"), torch.device("cpu")
    )
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    snapshots = Snapshots(trainer.model)

    def step() -> None:
        trainer._train_step(batches)
        batches.trained()

    for pieces in (0, 1, 5):
        step()
        tensors = trainer.checkpoints._tensors()
        expected = {name: part.clone() for name, part in flat(tensors).items()}
        snapshot = snapshots.take(tensors)
        for _ in range(3):
            step()
            for _ in range(pieces):
                snapshot.is_copied = next(snapshot._pieces, True)
        copied = flat(snapshot.complete(beat))
        assert copied.keys() == expected.keys()
        step()
        for name, part in expected.items():
            assert torch.equal(copied[name], part), f"{name} after {pieces} pieces a step"
    now = flat(trainer.checkpoints._tensors())
    return {name for name, part in expected.items() if not torch.equal(now[name], part)}


FP32 = {"embedding__precision": "fp32"}


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        (FP32, ["momentum1"]),
        (FP32 | {"embedding__optimizer": {"name": "adagrad", "lr": 0.1}}, ["momentum1"]),
        (FP32 | {"embedding__optimizer": {"name": "sgd", "lr": 0.1}}, []),
        ({}, ["moment1", "step", "step_moment1", "step_moment2"]),
        ({"embedding__precision": "int4", "embedding__alpt": {"passes": "one"}}, ["step"]),
    ],
    ids=["rowwise_adagrad", "adagrad", "sgd", "int8", "int4"],
)
def test_is_of_one_moment_though_training_goes_on(
    tmp_path: Path, settings: dict[str, Any], state: list[str]
):
    write_small_data(tmp_path)
    outcomes = run_ranks(2, snapshot_while_training, tmp_path, settings)
    changed = set.union(*outcomes)
    quantised = settings.get("embedding__precision") != "fp32"
    for table in ("user", "item", "city", "tags", "scores"):
        for tensor in ["codes" if quantised else "weight", *state]:
            assert any(f"{table}.{tensor}" in name for name in changed), (table, tensor)
