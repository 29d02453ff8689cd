# SPDX-License-Identifier: Apache-2.0
"""RMTL's episodes, critics and weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.balancing.rmtl import RMTL, next_of_user
from deltarec.distributed import rank, world_size
from tests.balancing.small_problem import balancer
from tests.conftest import run_ranks
from tests.small_job import small_job

INDEX = torch.tensor([7, 3, -1, 5, 4, 8, 6, -1, 20])
USER = torch.tensor([2, 1, 0, 1, 1, 2, 2, 0, 2])
NEXT = {1: 4, 4: 3, 6: 0, 0: 5}
"""Of samples whose user goes on in the next row; sample 3 is its user's last, and 5 and 8 are
followed by rows that are not in the batch."""
WIDTH = 3


def batch() -> Any:
    return SimpleNamespace(index=INDEX, user=USER)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def method(num_steps: int = 10, **options: Any) -> RMTL:
    torch.manual_seed(0)
    found = balancer("rmtl", "ab", **options)
    found.begin(num_steps)
    found.prepare(WIDTH)
    return found


def test_the_next_sample_of_a_user():
    later, seen = next_of_user(INDEX, USER)
    assert {i: n for i, n in enumerate(later.tolist()) if n >= 0} == NEXT
    assert seen.nonzero().flatten().tolist() == [0, 1, 3, 4, 6]


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_critics_and_weights_against_a_loop(one_process: torch.device, gamma: float):
    found = method(gamma=gamma, strength=0.5, warmup=0.0)
    with torch.no_grad():
        for parameter in found.slow.parameters():
            parameter.mul_(2)  # as if the critics had moved
    states, actions = random(9, WIDTH), random(9, 2, seed=1)
    present = random(9, 2, seed=2) > 0.2
    present[INDEX < 0] = False
    losses = random(9, 2, seed=3) * present
    weights, own = found.sample_weights(batch(), states, actions, losses, present)
    errors = []
    for i in range(9):
        for task in range(2):
            value = found.critics[task](torch.cat([states[i], actions[i, task : task + 1]]))
            wanted = (1 - 0.5 * value.detach()).clamp(min=0)
            torch.testing.assert_close(weights[i, task], wanted[0])
            if not present[i, task] or (gamma and i in (5, 8)):
                continue
            target = -losses[i, task]
            if gamma and i in NEXT and present[NEXT[i], task]:
                j = NEXT[i]
                slow = found.slow[task](torch.cat([states[j], actions[j, task : task + 1]]))
                target = target + gamma * slow.detach()[0]
            errors.append((value[0] - target).square())
    torch.testing.assert_close(own, torch.stack(errors).mean() * 2)
    own.backward()
    assert all(p.grad is not None and p.grad.any() for p in found.critics.parameters())
    assert all(p.grad is None for p in found.slow.parameters())


def test_critics_find_who_is_predicted_badly(one_process: torch.device):
    """And only after the warm-up do their values weigh."""
    found = method(num_steps=400, gamma=0.0, strength=1.0, warmup=0.5, hidden=[16])
    optimizer = torch.optim.Adam(found.critics.parameters(), lr=0.02)
    states, actions = random(9, WIDTH), random(9, 2, seed=1)
    present = torch.ones(9, 2, dtype=torch.bool)
    losses = torch.stack([states[:, 0], 1 - states[:, 0]], dim=1)
    weights = []
    for _ in range(400):
        weight, own = found.sample_weights(batch(), states, actions, losses, present)
        optimizer.zero_grad()
        own.backward()
        optimizer.step()
        weights.append(weight)
    assert all(torch.equal(w, torch.ones(9, 2)) for w in weights[:200])
    torch.testing.assert_close(weights[-1], 1 + losses, atol=0.05, rtol=0)
    assert found.logged()["weight/a"] == pytest.approx(float(weights[-1][:, 0].mean()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "set data.reader.shuffle to false"),
        ({"data__user": None, "data__reader": {"shuffle": False}}, "set data.user"),
    ],
)
def test_what_episodes_need(tmp_path: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        small_job(tmp_path, balance={"name": "rmtl"}, **overrides)
    small_job(tmp_path, balance={"name": "rmtl", "gamma": 0.0}, **overrides)


def share_of_the_critics_loss(gamma: float) -> float:
    """Of this rank, whose samples are those of a whole batch from its place on."""
    found = method(gamma=gamma, warmup=0.0)
    share = slice(rank(), None, world_size())  # rows that follow one another, on different ranks
    index, user = torch.arange(12), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    states, actions, losses = random(12, WIDTH), random(12, 2, seed=1), random(12, 2, seed=2)
    mine: Any = SimpleNamespace(index=index[share], user=user[share])
    present = random(12, 2, seed=3)[share] > 0.2
    _, own = found.sample_weights(mine, states[share], actions[share], losses[share], present)
    return float(own)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_a_next_sample_on_another_rank_counts(gamma: float):
    [whole] = run_ranks(1, share_of_the_critics_loss, gamma)
    for ranks in (2, 4):
        shares = run_ranks(ranks, share_of_the_critics_loss, gamma)
        assert sum(shares) / ranks == pytest.approx(whole, rel=1e-6)
