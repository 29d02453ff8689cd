# SPDX-License-Identifier: Apache-2.0
"""What holds for every balancing method."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.balancing import BALANCERS, balancer_of
from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.draws import Place
from deltarec.balancing.equal import Equal
from deltarec.balancing.gradients import TaskGradients
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.balancing.small_problem import OPTIONS, balancer, random_gradients
from tests.conftest import run_ranks
from tests.small_job import small_job, write_small_data

STEPS = 4
LABELS = {"a": "click", "b": "buy", "c": "click"}


class Problem:
    """Two rows at the boundary, a shared parameter, and a method that balances what reaches them.

    Args:
        name: the method's.
        tasks: one letter each.
    """

    def __init__(self, name: str, tasks: str) -> None:
        self.method = balancer(name, tasks)
        self.method.begin(100)
        self.vectors = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        self.parameter = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        if isinstance(self.method, GradientBalancer):
            self.method.prepare(["x"], [self.parameter], [])

    def step(self, matrix: Tensor, losses: Tensor) -> Tensor:
        """The combined gradient `[10]`, of such losses `[T]` with such gradients `[T, 10]`."""
        inputs = torch.cat([self.vectors.flatten(), self.parameter])
        shares = losses + matrix @ inputs
        if isinstance(self.method, GradientBalancer):
            place = Place({"x": 3}, torch.arange(2), find_keys=lambda: torch.arange(2))
            gradients = TaskGradients(shares, [self.vectors], [self.parameter], (), [place])
            with torch.no_grad():
                self.method.combine(gradients)
            parts = [*gradients.combined_boundary, *gradients.combined_shared]
        else:
            weighted = self.method(shares).sum()
            parts = torch.autograd.grad(weighted, [self.vectors, self.parameter])
        return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("name", BALANCERS)
def test_degenerate_batches_give_finite_updates(one_process: torch.device, name: str):
    """No sample of a task, of any task; equal, opposite and vanishing gradients; a loss of zero."""
    plain, same = random_gradients(3, 10), random_gradients(1, 10).repeat(3, 1)
    absent, opposite = plain.clone(), plain.clone()
    absent[1], opposite[1] = 0, -opposite[0]
    ones, lost = torch.ones(3).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    cases = [
        (absent, lost),
        (plain, ones),
        (same, ones),
        (opposite, ones),
        (plain * 1e-12, ones),
        (plain * torch.tensor([[1e6], [1.0], [1e-6]]), ones),
        (plain * 0, ones * 0),
        (absent, lost),
        (plain, lost),
        (plain, ones),
    ]
    problem = Problem(name, "abc")
    for matrix, losses in cases:
        found = problem.step(matrix, losses)
        assert found.isfinite().all(), (matrix, losses)
        problem.method.after_epoch()
    for key, value in problem.method.state_dict().items():
        assert value.isfinite().all(), key
    assert all(math.isfinite(value) for value in problem.method.logged().values())
    assert problem.step(plain, ones).any()


@pytest.mark.parametrize("name", BALANCERS)
def test_a_task_without_samples_does_not_stop_the_others(one_process: torch.device, name: str):
    matrix = random_gradients(3, 10)
    matrix[1] = 0
    assert Problem(name, "abc").step(matrix, torch.tensor([1.0, 0.0, 2.0]).double()).any()


@pytest.mark.parametrize("name", BALANCERS)
def test_what_is_remembered_is_in_the_state(one_process: torch.device, name: str):
    problem, resumed = Problem(name, "abc"), Problem(name, "abc")

    def step(problem: Problem, number: int) -> Tensor:
        losses = torch.tensor([1.0, 2.0, 3.0]).double() / (1 + number * torch.arange(3))
        return problem.step(random_gradients(3, 10, seed=number), losses)

    for number in range(STEPS):
        step(problem, number)
    resumed.method.load_state_dict(copy.deepcopy(problem.method.state_dict()))
    for number in range(STEPS, 2 * STEPS):
        assert torch.equal(step(problem, number), step(resumed, number))


@pytest.mark.parametrize("name", [name for name in BALANCERS if name != "static"])
def test_one_task_alone_is_trained_as_ever(name: str):
    config = balancer(name, "a").Config.model_validate({"name": name})
    assert isinstance(balancer_of(config, ["a"], seed=0), Equal)


def train_all(folder: Path) -> dict[str, tuple[Tensor, dict[str, float]]]:
    """By method, this rank's shares of the losses of a few steps, and what is logged after them."""
    return {name: train(folder, name) for name in BALANCERS}


def train(folder: Path, name: str) -> tuple[Tensor, dict[str, float]]:
    overrides: dict[str, Any] = {
        "tasks": {task: {"label": label} for task, label in LABELS.items()},
        "balance": {"name": name, **OPTIONS.get(name, {})},
        "train__optimizer__dense": {"name": "sgd", "lr": 0.05},
        "embedding__tables__country__sharding": "table_wise",
        "model__heads": {"name": "shared_bottom", "hidden": [8]},
    }
    if name == "pmtrec":  # which has no weighted lists
        scores = {"kind": "ids", "column": "tags", "table": "scores"}
        overrides["features__scores"] = scores
    if name == "rmtl":  # which wants a user's samples in a row
        overrides |= {"data__reader": {"shuffle": False}, "data__user": "scenario"}
    job = small_job(folder, **overrides)
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    trainer.model.train()
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    shares = []
    for _ in range(STEPS):
        shares.append(trainer._train_step(batches))
        batches.trained()
    batches.close()
    return torch.stack(shares), trainer.balancer.logged()


def test_the_number_of_ranks_changes_nothing(tmp_path: Path):
    """Every method trains a sharded model; weights, norms and cosines are logged alike."""
    write_small_data(tmp_path)
    alone = run_ranks(1, train_all, tmp_path)[0]
    ranks = run_ranks(2, train_all, tmp_path)
    for name, (losses, logged) in alone.items():
        shares = torch.stack([rank[name][0] for rank in ranks])
        torch.testing.assert_close(shares.mean(0), losses, rtol=1e-5, atol=1e-6, msg=name)
        for rank in ranks:
            assert rank[name][1] == pytest.approx(logged, rel=1e-3, abs=1e-5), name
    assert {f"weight/{task}" for task in LABELS} <= alone["mgda"][1].keys()
    assert {"gradient_norm/a", "gradient_cosine/a/b"} <= alone["mgda"][1].keys()
    assert not torch.equal(alone["equal"][0], alone["mgda"][0])
