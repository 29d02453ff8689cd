# SPDX-License-Identifier: Apache-2.0
"""Balanced gradients with accumulation, clipping, bf16 and quantised tables, on two ranks.

Each batch is balanced by itself. What comes of it, one gradient, is what the options act on.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.balancing.test_every_method import (
    STEPS,
    Trained,
    assert_same_changes,
    train_all,
    train_all_plain,
)
from tests.conftest import run_ranks
from tests.embeddings.quantised_job import TABLES
from tests.small_job import write_small_data

METHODS = ["equal", "pcgrad", "mgda", "db_mtl", "metabalance", "pmtrec"]
CLIP, RATE, STEP = 0.02, 0.05, 2.0**-10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


def both(data: Path, **options: Any) -> tuple[dict[str, Trained], dict[str, Trained]]:
    """By method, what two ranks do, and what plain PyTorch does."""
    found = run_ranks(2, train_all, data, METHODS, options)[0]
    return found, run_ranks(1, train_all_plain, data, METHODS, options)[0]


def dense_change(trained: Trained) -> torch.Tensor:
    """Of all dense parameters, one after the other."""
    return torch.cat([c.flatten() for name, c in trained.changes.items() if name not in TABLES])


@pytest.mark.parametrize("clip", [None, CLIP])
def test_accumulated_and_clipped_as_plain_gradients_are(data: Path, clip: float | None):
    """The mean of two batches' combined gradients, clipped, makes a step; rows move each time."""
    options: dict[str, Any] = {"train__optimizer__accumulate": 2}
    if clip is not None:
        options["train__optimizer__clip_norm"] = clip
    found, wanted = both(data, **options)
    for name in METHODS:
        assert_same_changes(found[name], wanted[name], name)
        longest = STEPS / 2 * RATE * CLIP
        clipped = 0.5 * longest < dense_change(found[name]).norm() < 1.001 * longest
        assert clipped == (clip is not None), name


def test_bf16_is_near_fp32(data: Path):
    """As near as the same method in plain PyTorch is, by the length of all changes."""
    exact = run_ranks(1, train_all, data, METHODS, {})[0]
    found, plain = both(data, train__precision="bf16")
    for name in METHODS:
        error, allowed = (distance(run[name], exact[name]) for run in (found, plain))
        assert 1e-3 < error < min(2 * allowed, 0.06), f"{name}: {error}, plain {allowed}"


def distance(found: Trained, wanted: Trained) -> float:
    """Relative, of all changes together."""
    squares = [(found.changes[k] - change).square().sum() for k, change in wanted.changes.items()]
    length = torch.stack([change.square().sum() for change in wanted.changes.values()]).sum()
    return float((torch.stack(squares).sum() / length).sqrt())


@pytest.mark.parametrize("passes", ["one", "two"])
def test_int8_tables_get_the_combined_gradient(data: Path, passes: str):
    """They are within half a step of fp32 tables, and other than with another method."""
    learned = {"passes": passes, "step_optimizer": {"name": "sgd", "lr": 1e-9}}
    options: dict[str, Any] = {
        "embedding__dim": 16,
        "embedding__precision": "int8",
        "embedding__initial_step": STEP,
        "embedding__rounding": "deterministic",
        "embedding__alpt": learned,
        "embedding__init_std": 0.01,
        "embedding__optimizer": {"name": "sgd", "lr": 60.0},
        "train__max_steps": 1,
    }
    options |= {f"embedding__tables__{name}__column_block": 8 for name in TABLES}
    found, wanted = both(data, **options)
    for name in METHODS:
        for table in TABLES:
            change, plain = found[name].changes[table], wanted[name].changes[table]
            assert (change - plain).abs().max() < 0.501 * STEP, f"{name}: {table}"
            if name != "equal":
                other = found["equal"].changes[table]
                assert (change - other).abs().max() > STEP, f"{name}: {table}"
