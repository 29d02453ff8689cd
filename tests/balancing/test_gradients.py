# SPDX-License-Identifier: Apache-2.0
"""The tasks' gradients at the boundary of the tables, on any number of ranks."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from deltarec.balancing.gradients import GradientBoundary, TaskGradients, reached_by_one_task
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.conftest import run_ranks
from tests.embeddings.plain_tables import by_table, plain_tables
from tests.embeddings.test_torchrec_traps import full_tables
from tests.pair_job import CONFIG, pair_job, write_pair_data
from tests.small_job import small_job, write_small_data

RATE = 0.5
WEIGHTS = torch.tensor([0.3, 1.7])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


def job_of(data: Path) -> Job:
    """Plain gradient descent: what is updated shows the gradient."""
    sgd = {"name": "sgd", "lr": RATE}
    return small_job(
        data,
        embedding__optimizer=sgd,
        train__optimizer__dense=sgd,
        embedding__tables__city__column_block=8,
        model__heads={"name": "shared_bottom", "hidden": [8]},
    )


def weighed(found: dict[str, Any]) -> Any:
    """A method that weighs the tasks, and notes what it was given."""

    def combine(gradients: TaskGradients) -> None:
        found["gram"], found["losses"] = gradients.gram(), gradients.losses()
        gradients.weigh(WEIGHTS)

    return combine


def one_step(folder: Path, job: Job) -> dict[str, Any]:
    """On each rank: what the method saw, and the tables and parameters after one step."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    model, found = trainer.model.module, {}
    own, _ = reached_by_one_task(model.network.heads, 2, model.network.scenario.output_dim)
    model.boundary = GradientBoundary(model.network, own, model.losses, weighed(found))
    trainer.model.train()
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    trainer._train_step(batches)
    return found | {
        "tables": full_tables(trainer.model),
        "parameters": {n: p.detach() for n, p in model.network.named_parameters()},
    }


def by_hand(folder: Path, job: Job) -> dict[str, Any]:
    """The same on an unsharded copy of the model, one backward for each task, by the equations."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    tables = plain_tables(trainer)
    network = copy.deepcopy(trainer.model.module.network).train()
    batch = next(trainer.reader.read(trainer.state.position, 1))
    outputs: list[Tensor] = []
    for module in tables.modules():
        if isinstance(module, (EmbeddingBagCollection, EmbeddingCollection)):
            module.register_forward_hook(lambda _, __, found: outputs.extend(values_of(found)))
    losses = trainer.model.module.losses(network(batch, tables(batch)), batch)
    shared = [p for n, p in network.named_parameters() if not n.startswith("heads.")]
    own = [p for n, p in network.named_parameters() if n.startswith("heads.")]
    flat = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, [*outputs, *shared], retain_graph=True)
        flat.append(torch.cat([g.flatten() for g in gradients]).double())
    plain = torch.autograd.grad(losses.sum(), own, retain_graph=True)
    weighted = (losses * WEIGHTS).sum()
    leaves = [*tables.parameters(), *shared]
    updates = torch.autograd.grad(weighted, leaves)
    with torch.no_grad():
        for leaf, gradient in zip([*leaves, *own], [*updates, *plain], strict=True):
            leaf -= RATE * gradient
    matrix = torch.stack(flat)
    return {
        "gram": matrix @ matrix.T,
        "losses": losses.detach().double(),
        "tables": by_table(tables),
        "parameters": {n: p.detach() for n, p in network.named_parameters()},
    }


def values_of(found: Any) -> list[Tensor]:
    if isinstance(found, dict):
        return [jagged.values() for jagged in found.values()]
    return [found.values()]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_sharded_model_is_updated_as_a_plain_one(data: Path, tmp_path: Path, ranks: int):
    job = job_of(data)
    wanted = run_ranks(1, by_hand, tmp_path, job)[0]
    for found in run_ranks(ranks, one_step, tmp_path, job):
        torch.testing.assert_close(found["losses"], wanted["losses"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["gram"], wanted["gram"], rtol=1e-4, atol=1e-9)
        for part in ("tables", "parameters"):
            assert found[part].keys() == wanted[part].keys()
            for name, value in wanted[part].items():
                torch.testing.assert_close(
                    found[part][name], value, rtol=1e-5, atol=1e-5, msg=f"{part}: {name}"
                )


def test_one_task_alone_is_ordinary_training(one_process: torch.device):
    torch.manual_seed(0)
    network, x = nn.Linear(4, 1), torch.randn(8, 4)
    losses = network(x).square().mean(0)
    gradients = TaskGradients(losses, [], list(network.parameters()))
    for found, parameter in zip(gradients.combined_shared, network.parameters(), strict=True):
        wanted = torch.autograd.grad(network(x).square().mean(), parameter)[0]
        torch.testing.assert_close(found, wanted)


def exchanges(folder: Path, job: Job) -> Counter[str]:
    """How often each collective is called in one training step, after the first one."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
    trainer._train_step(batches)
    with torch.profiler.profile() as profile:
        trainer._train_step(batches)
    names = [event.name.split(":") for event in profile.events()]
    return Counter(name[1] for name in names if name[0] == "gloo")


@pytest.mark.parametrize("name", ["mgda", "graddrop", "metabalance"])
def test_exchanges_of_tables_do_not_grow_with_the_tasks(data: Path, tmp_path: Path, name: str):
    """Tasks of the same two labels, 2, 4 and 8 of them, exchange as often as with equal weights.

    Row-wise tables gather vectors, and gloo scatters sums by all_reduce; of these a method adds a
    few, of inner products and shared gradients, for any number of tasks.
    """
    plain = {"model__trunk": {"name": "mlp", "hidden": [16]}}  # without statistics of batches
    counts = []
    for number in (2, 4, 8):
        more = {f"tasks__click{k}": {"label": "click"} for k in range(number - 2)}
        job = small_job(data, balance={"name": name}, **plain, **more)
        counts.append(run_ranks(2, exchanges, tmp_path / str(number), job)[0])
    [equal, _] = run_ranks(2, exchanges, tmp_path / "equal", small_job(data, **plain))
    assert counts[0] == counts[1] == counts[2]
    assert equal["all_to_all"] and equal["all_gather"]
    added = counts[0] - equal
    assert added.keys() == {"all_reduce"} and added["all_reduce"] <= 4


def test_statistics_of_batches_are_exchanged_for_each_task(data: Path, tmp_path: Path):
    """Batch normalisation's backward is a collective, and each task has one."""
    sums = []
    for number in (2, 4):
        more = {f"tasks__click{k}": {"label": "click"} for k in range(number - 2)}
        job = small_job(data, balance={"name": "mgda"}, **more)
        sums.append(run_ranks(2, exchanges, tmp_path / str(number), job)[0])
    assert sums[1] - sums[0] == Counter(all_reduce=4)


@pytest.mark.parametrize("name", ["mgda", "pmtrec", "adatask"])
def test_nor_do_exchanges_of_rows(tmp_path: Path, name: str):
    """Pairwise tasks meet in the tables' rows, whose gradients of all tasks go in one exchange."""
    write_pair_data(tmp_path)
    listen = {"kind": "pairwise", "query": ["user"], "item": ["item"]}
    sgd = {"name": "sgd", "lr": 0.1}
    counts = []
    for number in (2, 4, 8):
        tasks = {f"listen{k}": listen for k in range(number)}
        features = {k: CONFIG["features"][k] for k in ("user", "item")}
        job = pair_job(
            tmp_path,
            tasks=tasks,
            features=features,
            balance={"name": name},
            train__optimizer__dense=sgd,
            embedding__optimizer=sgd,
        )
        counts.append(run_ranks(2, exchanges, tmp_path / str(number), job)[0])
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["all_to_all"]
