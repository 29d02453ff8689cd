# SPDX-License-Identifier: Apache-2.0
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from tests.balancing.small_problem import balancer, random_gradients, weights


def projected(gradients: Tensor, orders: tuple[tuple[int, ...], ...]) -> Tensor:
    """The paper's algorithm on explicit vectors, each looking at the others in its order: Σ_i."""
    total = torch.zeros_like(gradients[0])
    for own, order in zip(gradients, orders, strict=True):
        own = own.clone()
        for j in order:
            product = own @ gradients[j]
            if product < 0:
                own -= product / (gradients[j] @ gradients[j]) * gradients[j]
        total += own
    return total


@pytest.mark.parametrize("seed", range(4))
def test_as_on_explicit_vectors_in_an_order_drawn_for_each_task_and_step(seed: int):
    gradients, method = random_gradients(3, 2, seed, shift=0), balancer("pcgrad")
    others = [list(permutations(j for j in range(3) if j != i)) for i in range(3)]
    possible = {orders: projected(gradients, orders) for orders in product(*others)}
    found = [weights(method, gradients) @ gradients for _ in range(40)]
    for update in found:
        assert any(torch.allclose(update, wanted) for wanted in possible.values())
    for wanted in possible.values():  # each of 8, or fewer that differ, is drawn in 40 steps
        assert any(torch.allclose(update, wanted) for update in found)


def test_the_order_matters():
    """Or the test before this one would test little."""
    gradients = random_gradients(3, 2, 1, shift=0)
    first = projected(gradients, ((1, 2), (0, 2), (0, 1)))
    assert not torch.allclose(first, projected(gradients, ((2, 1), (2, 0), (1, 0))))


def test_two_tasks_keep_no_conflict():
    """Each loses its part along the other: what is left of it is at a right angle to that."""
    for seed in range(20):
        gradients = random_gradients(2, 3, seed, shift=0)
        first, second = gradients
        update = weights(balancer("pcgrad", "ab"), gradients) @ gradients
        if first @ second >= 0:
            torch.testing.assert_close(update, first + second)
            continue
        unit = gradients / gradients.norm(dim=1, keepdim=True)
        parts = first - (first @ unit[1]) * unit[1], second - (second @ unit[0]) * unit[0]
        torch.testing.assert_close(update, parts[0] + parts[1])
        assert (gradients @ update > 0).all()


def test_without_a_conflict_it_is_the_sum():
    agreeing = random_gradients(4, 5).abs()
    assert torch.equal(weights(balancer("pcgrad", "abcd"), agreeing), torch.ones(4).double())
