# SPDX-License-Identifier: Apache-2.0
"""What holds for every balancing method."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.distributed.types import ShardedTensor

from deltarec.balancing import BALANCERS, balancer_of
from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.draws import Place
from deltarec.balancing.equal import Equal
from deltarec.balancing.gradients import TaskGradients
from deltarec.job import Job
from deltarec.models.ranking import RankingModel
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.balancing.small_problem import OPTIONS, balancer, random_gradients
from tests.conftest import run_ranks
from tests.embeddings.plain_tables import by_table, plain_tables, whole_tables
from tests.pair_job import pair_job, write_pair_data
from tests.small_job import small_job, write_small_data

STEPS = 4
SOFTENED = {"adatask": {"eps": 1e-3}}
"""Dividing by the root of a moment makes of a gradient that is a rounding error a whole step."""
TABLE_RATES = {"adatask": 0.5}
"""Others have a large one: a sample is a hundredth of the loss. Here gradients are of norm 1."""
OFTEN = {"dwa": {"period": 1, "temperature": 0.1}}
"""It compares periods, and a few steps have to be several of them."""
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
            self.method.prepare(["x"], {"x": 2}, [self.parameter], [])

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
        here = value.local_tensor() if isinstance(value, ShardedTensor) else value
        assert here.isfinite().all(), key
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


def job_of(folder: Path, name: str, **more: Any) -> Job:
    """Plain gradient descent: what is updated shows the gradient.

    Without batch normalisation, before which a bias has a gradient of rounding errors alone.
    """
    sgd = {"name": "sgd", "lr": 0.05}
    overrides: dict[str, Any] = {
        "tasks": {task: {"label": label} for task, label in LABELS.items()},
        "balance": {"name": name, **(OPTIONS | SOFTENED | OFTEN).get(name, {})},
        "train__optimizer__dense": sgd,
        "embedding__optimizer": {"name": "sgd", "lr": TABLE_RATES.get(name, 20.0)},
        "embedding__tables__country__sharding": "table_wise",
        "embedding__tables__city__column_block": 8,
        "model__trunk": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "model__heads": {"name": "shared_bottom", "hidden": [8]},
    }
    if name in ("pmtrec", "adatask"):  # which have no weighted lists
        scores = {"kind": "ids", "column": "tags", "table": "scores"}
        overrides["features__scores"] = scores
    if name == "rmtl":  # which wants a user's samples in a row
        overrides |= {"data__reader": {"shuffle": False}, "data__user": "scenario"}
    return small_job(folder, **(overrides | more))


@dataclass
class Trained:
    """What a few steps have done: this rank's shares of the losses, what was logged, changes."""

    losses: Tensor
    logged: dict[str, float]
    changes: dict[str, Tensor]
    """By table or parameter, after the steps less before them."""


def train_all(folder: Path, names: Iterable[str], more: dict[str, Any]) -> dict[str, Trained]:
    """By method, a job as users run it."""
    return {name: train(folder, name, more) for name in names}


def train(folder: Path, name: str, more: dict[str, Any]) -> Trained:
    return train_job(folder, job_of(folder, name, **more))


def train_job(folder: Path, job: Job) -> Trained:
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    trainer.model.train()
    before = weights_of(trainer)
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    shares = []
    for _ in range(trainer.job.train.max_steps or STEPS):
        shares.append(trainer._train_step(batches))
        batches.trained()
    batches.close()
    changes = changed(weights_of(trainer), before)
    return Trained(torch.stack(shares), trainer.balancer.logged(), changes)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    network = dict(trainer.model.module.network.named_parameters())
    found = whole_tables(trainer) | network
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def changed(after: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor - before[name] for name, tensor in after.items()}


def train_all_plain(folder: Path, names: Iterable[str], more: dict[str, Any]) -> dict[str, Trained]:
    return {name: train_plain(folder, name, more) for name in names}


def train_plain(folder: Path, name: str, more: dict[str, Any]) -> Trained:
    """The same without TorchRec: tables of one process, autograd and optimisers of torch."""
    job = job_of(folder, name, **more)
    options = job.train.optimizer
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    tables = plain_tables(trainer)
    network = copy.deepcopy(trainer.model.module.network)
    method = balancer_of(job.balance, list(job.tasks), job.train.seed)
    model = RankingModel(tables, network, method, trainer.assignments).train()
    method.begin(trainer.num_steps)
    method.load_state_dict(trainer.balancer.state_dict())
    rows, rate = list(tables.parameters()), job.embedding.optimizer.lr
    dense = list(set(model.parameters()) - set(rows))  # the method's own too
    of_rows, of_dense = torch.optim.SGD(rows, lr=rate), torch.optim.SGD(dense, lr=0.05)
    before = weights_of(trainer)
    losses = []
    batches = trainer.reader.read(trainer.state.position, 1)
    for number in range(job.train.max_steps or STEPS):
        batch = next(batches)
        total, (plain, _) = model(batch)
        of_rows.zero_grad()
        total.sum().backward()
        of_rows.step()
        if (number + 1) % options.accumulate == 0:
            for parameter in dense:
                if parameter.grad is not None:
                    parameter.grad /= options.accumulate
            if options.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(dense, options.clip_norm)
            of_dense.step()
            of_dense.zero_grad()
        losses.append(plain)
        if method.looks_again:
            with torch.no_grad():
                method.after_update(model(batch)[1][0].double())
    batches.close()
    after = by_table(tables) | {name: p.detach() for name, p in network.named_parameters()}
    return Trained(torch.stack(losses), method.logged(), changed(after, before))


def assert_same_changes(found: Trained, wanted: Trained, where: str) -> None:
    """To a hundred-thousandth of the largest; float32 has weights of 1 to 6e-8."""
    assert found.changes.keys() == wanted.changes.keys()
    for key, change in wanted.changes.items():
        error = (found.changes[key] - change).abs().max()
        assert error < 1e-5 * change.abs().max() + 5e-7, f"{where}: {key}"


def test_a_sharded_model_is_updated_as_a_plain_one(tmp_path: Path):
    """By every method, on any number of ranks; weights, norms and cosines are logged alike."""
    write_small_data(tmp_path)
    plain = run_ranks(1, train_all_plain, tmp_path, list(BALANCERS), {})[0]
    for num_ranks in (1, 2, 4):
        ranks = run_ranks(num_ranks, train_all, tmp_path, list(BALANCERS), {})
        for name, wanted in plain.items():
            where = f"{name}, {num_ranks} ranks"
            shares = torch.stack([rank[name].losses for rank in ranks])
            torch.testing.assert_close(
                shares.mean(0), wanted.losses, rtol=1e-5, atol=1e-6, msg=where
            )
            for rank in ranks:
                assert rank[name].logged == pytest.approx(wanted.logged, rel=1e-3, abs=1e-5), where
                assert_same_changes(rank[name], wanted, where)
    least = {
        name: min(float(found.changes[table].abs().max()) for table in ("user", "item", "city"))
        for name, found in plain.items()
    }
    assert min(least.values()) > 1e-3, least
    assert {f"weight/{task}" for task in LABELS} <= plain["mgda"].logged.keys()
    assert {"gradient_norm/a", "gradient_cosine/a/b"} <= plain["mgda"].logged.keys()
    for name, found in plain.items():
        if name != "equal":
            assert not torch.equal(found.losses, plain["equal"].losses), name


PAIRWISE = ["alternating", "famo", "mgda", "gradnorm", "graddrop", "metabalance", "adatask"]
"""Of each kind of method one; pmtrec has a test of its own."""


def train_pairwise(folder: Path) -> dict[str, Trained]:
    """Each task on rows of its own, whose vectors go through towers that the tasks share.

    The bias of the items' tower has a gradient of rounding errors alone: the loss has differences
    of scores.
    """
    found = {}
    for name in PAIRWISE:
        job = pair_job(
            folder,
            balance={"name": name, **({"eps": 0.1} if name == "adatask" else {})},
            model__pair={"name": "two_tower", "hidden": [8], "dim": 8},
            train__optimizer__dense={"name": "sgd", "lr": 0.05},
            embedding__optimizer={"name": "sgd", "lr": 0.5},
            train__batch_size=19,
            train__max_steps=STEPS,
        )
        found[name] = train_job(folder, job)
    return found


def test_pairwise_tasks_are_balanced_alike_on_any_number_of_ranks(tmp_path: Path):
    write_pair_data(tmp_path)
    [plain] = run_ranks(1, train_pairwise, tmp_path)
    for rank in run_ranks(3, train_pairwise, tmp_path):
        for name, wanted in plain.items():
            assert rank[name].logged == pytest.approx(wanted.logged, rel=1e-3, abs=1e-5), name
            assert_same_changes(rank[name], wanted, name)
