# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from scipy.optimize import minimize

from deltarec.balancing.simplex import shortest
from tests.balancing.small_problem import balancer, random_gradients, weights


def test_the_nearest_allowed_point_to_the_best_of_sum_one():
    gradients = random_gradients(seed=1)
    gram = gradients @ gradients.T
    least = torch.tensor([0.3, 0.0, 0.2], dtype=torch.float64)
    inverse = torch.linalg.solve(gram, torch.ones(3).double())
    best = (inverse / inverse.sum()).numpy()
    wanted = minimize(
        lambda w: ((w - best) ** 2).sum(),
        [0.4, 0.3, 0.3],
        bounds=[(float(c), 1) for c in least],
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        tol=1e-14,
    ).x
    found = weights(balancer("pe_ltr", least={"a": 0.3, "c": 0.2}), gradients)
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=0, atol=1e-6)
    assert (found >= least - 1e-12).all() and found.sum().item() == pytest.approx(1)


def test_without_bounds_two_tasks_are_mgda():
    gradients = random_gradients(2)
    found = weights(balancer("pe_ltr", "ab"), gradients)
    torch.testing.assert_close(found, shortest(gradients @ gradients.T))


def test_bounds_of_sum_one_are_refused():
    with pytest.raises(ValueError, match=r"balance.least: the sum is 1.2; it must be below 1"):
        balancer("pe_ltr", least={"a": 0.6, "b": 0.6})
    with pytest.raises(ValueError, match=r"balance.least: no task is named \['z'\]"):
        balancer("pe_ltr", least={"z": 0.6})
