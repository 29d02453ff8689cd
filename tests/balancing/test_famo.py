# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer, _Batches
from tests.balancing.small_problem import balancer
from tests.balancing.test_every_method import assert_same_changes, train, train_plain
from tests.conftest import run_ranks
from tests.embeddings.quantised_job import quantised_job, whole_state
from tests.embeddings.test_torchrec_traps import full_tables
from tests.small_job import small_job, write_small_data

STEPS = [[1.0, 2.0, 4.0], [0.5, 1.9, 4.1], [0.4, 1.0, 4.0]]
EXACT = {"name": "famo", "exact": True, "lr": 0.5}


@pytest.mark.parametrize("exact", [False, True])
def test_as_the_released_code(one_process: torch.device, exact: bool):
    """Which is told the losses after the update; or with the next ones in their place."""
    method = balancer("famo", minimum={"b": 0.5}, exact=exact)
    minimum = torch.tensor([0.0, 0.5, 0.0]).double()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.025, weight_decay=1e-3)
    before = None

    def update(before: torch.Tensor, after: torch.Tensor) -> None:
        w.grad = torch.autograd.grad(w.softmax(0), w, before.log() - after.log())[0]
        optimizer.step()

    for values in STEPS:
        above = torch.tensor(values).double() - minimum
        if before is not None and not exact:
            update(before, above)
        before = above
        losses = torch.tensor(values, requires_grad=True)
        z = w.detach().softmax(0)
        c = (z / above).sum()
        ((z * (losses - minimum).log()).sum() / c).backward()
        torch.testing.assert_close(method(losses) / losses, losses.grad)
        if exact:
            after = torch.tensor([0.9, 0.95, 1.0]).double() * above
            method.after_update(after + minimum)
            update(above, after)


def test_a_task_counts_if_it_is_above_its_minimum_before_and_after(one_process: torch.device):
    method, other = (balancer("famo", minimum={"b": 0.5}, exact=True) for _ in range(2))
    for found in (method, other):
        found.weights(torch.tensor([1.0, 2.0, 4.0]).double())
        found.after_update(torch.tensor([0.9, 1.0, 3.0]).double())
        found.weights(torch.tensor([1.0, 0.4, 4.0]).double())
    method.after_update(torch.tensor([0.9, 0.6, 3.0]).double())
    other.after_update(torch.tensor([0.9, 0.4, 3.0]).double())
    assert torch.equal(method.logits, other.logits)


def test_a_batch_is_looked_at_again_as_by_plain_pytorch(tmp_path: Path):
    """With the same dropout, by the updated tables and layers, on any number of ranks."""
    write_small_data(tmp_path)
    more = {"balance": EXACT}
    [wanted] = run_ranks(1, train_plain, tmp_path, "famo", more)
    approximate = run_ranks(1, train, tmp_path, "famo", {"balance": {"name": "famo", "lr": 0.5}})[0]
    for ranks in (1, 2):
        for found in run_ranks(ranks, train, tmp_path, "famo", more):
            assert_same_changes(found, wanted, f"{ranks} ranks")
            assert found.logged == pytest.approx(wanted.logged, rel=1e-4)
    assert approximate.logged != pytest.approx(wanted.logged, rel=1e-3)


@pytest.mark.parametrize("pipeline", ["sparse_dist", "plain"])
def test_looking_changes_nothing_but_the_weights(
    tmp_path: Path, one_process: torch.device, pipeline: str
):
    """A first step is the same with and without: also the statistics of batch normalisation."""
    write_small_data(tmp_path)
    states: list[dict[str, Any]] = []
    for exact in (False, True):
        balance = EXACT | {"exact": exact}
        job = small_job(tmp_path, balance=balance, train__pipeline=pipeline)
        trainer = Trainer(job, RunFolder(tmp_path / "run"), one_process)
        trainer.model.train()
        batches = _Batches(trainer.reader.read(trainer.state.position, 1), trainer.assignments)
        trainer._train_step(batches)
        batches.close()
        states.append(full_tables(trainer.model) | trainer.model.module.network.state_dict())
        assert bool(trainer.balancer.state_dict()["logits"].any()) == exact
    assert any(name.endswith("running_mean") for name in states[0])
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_quantised_tables_are_looked_at_too(
    tmp_path: Path, one_process: torch.device, monkeypatch: pytest.MonkeyPatch
):
    """After the second pass, which their steps are learned in; and whole jobs end well."""
    write_small_data(tmp_path)
    job = quantised_job(tmp_path, balance=EXACT, train__max_steps=3, train__evaluate_every=2)
    trainer = Trainer(job, RunFolder(tmp_path / "run"), one_process)
    assert trainer.second_pass is not None
    seen: list[tuple[str, dict[str, Any]]] = []

    def spy(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def called(*arguments: Any) -> None:
            function(*arguments)
            seen.append((name, whole_state(trainer)))

        monkeypatch.setattr(owner, name, called)

    spy(trainer, "second_pass")
    spy(trainer, "_look_again")
    before = whole_state(trainer)
    trainer.fit()
    assert [name for name, _ in seen] == ["second_pass", "_look_again"] * 3
    for (_, learned), (_, looked_at) in zip(seen[::2], seen[1::2], strict=True):
        assert not torch.equal(before["user.step"], learned["user.step"])
        assert all(torch.equal(t, looked_at[n]) for n, t in learned.items())
        before = learned
    assert trainer.balancer.state_dict()["logits"].any()
