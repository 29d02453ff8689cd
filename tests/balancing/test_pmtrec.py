# SPDX-License-Identifier: Apache-2.0
"""PMTRec's row weights by hand, their limits, and on sharded tables."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.balancing.by_task import ByTask
from deltarec.balancing.pmtrec import PMTRec
from deltarec.balancing.rows import Rows
from deltarec.data.batch import Position
from deltarec.job import Job
from deltarec.models.losses import TaskLosses
from deltarec.models.network import network_of
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.balancing.small_problem import balancer
from tests.balancing.test_gradients import exchanges
from tests.conftest import run_ranks
from tests.embeddings.plain_tables import by_table, plain_tables
from tests.embeddings.test_torchrec_traps import full_tables
from tests.pair_job import pair_job
from tests.small_job import small_job, write_small_data

RATE, STEPS = 0.5, 4
NORMS = torch.tensor([[3.0, 1.0, 0.0], [5.0, 0.0, 2.0]])
"""Of two tasks and three rows: the main task touches the first two, the other one 0 and 2."""


def method(**options: Any) -> PMTRec:
    found = balancer("pmtrec", "ab", **options)
    found.begin(11)
    return found


def rows(seed: int = 0) -> Rows:
    """Row 0 occurs twice, and its gradients add up to norms 3 and 5."""
    random = torch.Generator().manual_seed(seed)
    keys, gradients = [], []
    for task, (ids, values) in enumerate(
        [([0, 1, 0, 2], [1.0, 1.0, 2.0, 0.0]), ([0, 0, 2], [7.0, -2.0, -2.0])]
    ):
        order = torch.randperm(len(ids), generator=random)
        gradient = torch.zeros(len(ids), 4)
        gradient[:, 1] = torch.tensor(values)
        keys.append(torch.tensor(ids)[order])
        gradients.append(ByTask(gradient, 2, {task: gradient[order]}))
    return Rows.of(keys, gradients, 2)


def weights(found: PMTRec, seed: int = 0) -> Tensor:
    by_row = found.row_weights(rows(seed))
    assert by_row.keys.tolist() == [0, 1, 2]
    keys = torch.tensor([-1, 2, 0, 3])
    expected = torch.stack([by_row.weights[:, 2], by_row.weights[:, 0]], dim=1)
    assert torch.equal(by_row.at(keys)[:, 1:3], expected) and not by_row.at(keys)[:, [0, 3]].any()
    return by_row.weights


def test_weights_of_plain_norms(one_process: torch.device):
    """Rows that one task touches have weight 1 for it."""
    first = (NORMS[:, 0] / 2).softmax(0)
    expected = torch.stack([first, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], dim=1)
    torch.testing.assert_close(weights(method(form="plain", temperature=2.0)), expected)


def test_scaled_norms_are_relative_to_their_tasks_running_mean(one_process: torch.device):
    """The mean over the rows that a task touches: 2 and 3.5; then it stays, for norms stay."""
    found = method()
    for _ in range(2):
        first = torch.tensor([3 / 2, 5 / 3.5]).softmax(0)
        torch.testing.assert_close(weights(found)[:, 0], first)
        assert found.means.tolist() == [2.0, 3.5]
    found.means.copy_(torch.tensor([1.0, 7.0]))
    weights(found)
    assert found.means.tolist() == pytest.approx([0.9 * 1 + 0.1 * 2, 0.9 * 7 + 0.1 * 3.5])


def test_parts_can_be_switched_off(one_process: torch.device):
    found = weights(method(form="plain", personal_weights=False))
    torch.testing.assert_close(found[:, 0], torch.tensor([2.0, 3.5]).softmax(0))
    assert found[:, 1:].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    found = weights(method(magnitude_balancing=False))
    torch.testing.assert_close(found[:, 0], torch.tensor([3 / 8, 5 / 8]))
    focused = method(task_focusing=False)
    focused.steps.fill_(10)
    torch.testing.assert_close(weights(focused), weights(method()))


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])
def test_focusing_ends_with_the_main_task_alone(one_process: torch.device, schedule: str):
    found = method(schedule=schedule)
    betas = []
    for step in range(11):
        found.steps.fill_(step)
        betas.append(found.beta)
        row = weights(found)
        sums = torch.tensor([1.0, 1.0, 1 - found.beta])
        torch.testing.assert_close(row.sum(0), sums)
    assert betas == sorted(betas) and betas[0] == 0 and betas[5] == pytest.approx(0.5)
    assert betas[10] == pytest.approx(1)
    torch.testing.assert_close(row, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert method(schedule=schedule, focus=0.3).beta == 0


def test_a_high_temperature_makes_tasks_equal(one_process: torch.device):
    found = weights(method(temperature=1e6))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1, 0], [0.5, 0, 1]]), atol=1e-5, rtol=0)


def test_a_low_temperature_lets_one_task_win(one_process: torch.device):
    found = weights(method(form="plain", temperature=1e-2))
    assert found[:, 0].tolist() == [0.0, 1.0]


def test_the_order_of_the_batch_is_without_effect(one_process: torch.device):
    for seed in range(1, 4):
        torch.testing.assert_close(weights(method(), seed), weights(method()), rtol=1e-6, atol=0)


def job_of(data: Path, **balance: Any) -> Job:
    """Plain gradient descent: what is updated shows the gradient."""
    return pair_job(
        data,
        balance={"name": "pmtrec", "temperature": 0.5, **balance},
        embedding__optimizer={"name": "sgd", "lr": RATE},
        train__batch_size=64,
        train__max_steps=STEPS,
    )


def train(folder: Path, job: Job) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tables after a few steps, and what is logged of the last one."""
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    trainer.model.train()
    batches = _Batches(trainer.reader.read(Position(), 1), trainer.assignments)
    for _ in range(STEPS):
        trainer._train_step(batches)
        batches.trained()
    batches.close()
    return full_tables(trainer.model), trainer.balancer.logged()


def by_hand(folder: Path, job: Job) -> tuple[dict[str, Tensor], Tensor]:
    """The equations on plain tables: each task's gradient of the tables, row by row.

    Returns:
        The tables, and the inner products of the tasks' gradients in the last step.
    """
    trainer = Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))
    schema, specs = job.data_schema, job.embedding.resolved()
    tables = plain_tables(trainer)
    network = network_of(job.model, schema, specs, seed=0)
    losses = TaskLosses(schema.tasks, network.losses)
    batches, means = trainer.reader.read(Position(), 1), torch.zeros(len(job.tasks))
    leaves, products = list(tables.parameters()), torch.empty(0)
    for step in range(STEPS):
        batch = next(batches)
        by_task = losses(network(batch, tables(batch)), batch)
        found = [
            torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            for loss in by_task
        ]
        gradients = [torch.stack(g) for g in zip(*found, strict=True)]  # [T, rows, D] each
        norms = [g.norm(dim=2) for g in gradients]
        flat = torch.cat([g.flatten(1) for g in gradients], dim=1)
        products = flat @ flat.T
        every = torch.cat(norms, dim=1)
        mean = every.sum(1) / (every > 0).sum(1)
        means = mean if step == 0 else 0.9 * means + 0.1 * mean
        beta = step / (STEPS - 1)
        for leaf, gradient, norm in zip(leaves, gradients, norms, strict=True):
            powers = (norm / means.unsqueeze(1) / 0.5).exp() * (norm > 0)
            balanced = powers / powers.sum(0).clamp(min=1e-30)
            main = torch.zeros(len(means), 1)
            main[0] = 1
            focused = (beta * main + (1 - beta) * balanced) * (norm > 0)
            leaf.data -= RATE * (focused.unsqueeze(2) * gradient).sum(0)
    return by_table(tables), products


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sharded_tables_are_updated_as_plain_ones(pair_data: Path, tmp_path: Path, ranks: int):
    """Rows occur on several ranks, in several features and as negatives; ranks log alike."""
    job = job_of(pair_data)
    [(wanted, products)] = run_ranks(1, by_hand, tmp_path, job)
    norms = products.diagonal().sqrt()
    cosine = float(products[0, 1] / norms[0] / norms[1])
    results = run_ranks(ranks, train, tmp_path, job)
    for tables, logged in results:
        for name, value in wanted.items():
            torch.testing.assert_close(tables[name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert logged == results[0][1]
        assert logged["gradient_norm/social"] == pytest.approx(float(norms[1]), rel=1e-5)
        assert logged["gradient_cosine/listen/social"] == pytest.approx(cosine, rel=1e-4, abs=1e-6)
        assert logged["weight/listen"] == 1 and logged["weight/social"] == 0


def test_local_norms_are_exact_on_one_process(
    pair_data: Path, tmp_path: Path, one_process: torch.device
):
    found = train(tmp_path, job_of(pair_data, norms="local"))[0]
    for name, value in by_hand(tmp_path, job_of(pair_data))[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_local_norms_exchange_two_sums(pair_data: Path, tmp_path: Path):
    counts = {}
    for name, balance in (
        ("equal", {"name": "equal"}),
        ("local", {"name": "pmtrec", "norms": "local"}),
        ("global", {"name": "pmtrec"}),
    ):
        job = pair_job(pair_data, balance=balance)
        counts[name] = run_ranks(2, exchanges, tmp_path / name, job)[0]
    assert counts["local"] - counts["equal"] == {"all_reduce": 2}
    assert counts["equal"]["all_to_all"] == counts["local"]["all_to_all"]
    assert counts["local"]["all_to_all"] < counts["global"]["all_to_all"]


def test_lists_are_weighed_row_by_row(tmp_path: Path, one_process: torch.device):
    """Rows of a list of tags have weights of their own, so they are looked up one by one."""
    write_small_data(tmp_path)
    scores = {"kind": "ids", "column": "tags", "table": "scores"}
    job = small_job(
        tmp_path,
        features__scores=scores,
        embedding__tables__country__sharding="row_wise",
        balance={"name": "pmtrec"},
        train__max_steps=2,
    )
    assert job.data_schema.row_tables == {"tags", "scores"}
    Trainer(job, RunFolder(tmp_path / "run"), torch.device("cpu")).fit()
    with pytest.raises(ValueError, match=r"features.scores.weights: balance pmtrec uses"):
        small_job(tmp_path, balance={"name": "pmtrec"})
