# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from scipy.optimize import minimize

from tests.balancing.small_problem import balancer, random_gradients, weights


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("c", [0.2, 0.5, 1.5])
def test_the_dual_problem_solved_as_by_a_general_solver(tasks: int, c: float):
    gradients = random_gradients(tasks, 7, seed=tasks)
    mean = gradients.mean(0)

    def value(w: torch.Tensor) -> float:
        return float((w @ gradients) @ mean + c * mean.norm() * (w @ gradients).norm())

    wanted = minimize(
        lambda w: value(torch.from_numpy(w)),
        [1 / tasks] * tasks,
        bounds=[(0, 1)] * tasks,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        tol=1e-14,
    ).x
    g_w = torch.from_numpy(wanted) @ gradients
    update = (mean + c * mean.norm() / g_w.norm() * g_w) / (1 + c**2)
    found = weights(balancer("cagrad", "abcdef"[:tasks], c=c), gradients) @ gradients
    torch.testing.assert_close(found, update, rtol=0, atol=1e-4)
    # The update lies on the ball around the mean, and its worst task is no worse off.
    away = found * (1 + c**2) - mean
    torch.testing.assert_close(away.norm(), c * mean.norm(), rtol=1e-5, atol=0)
    assert (gradients @ found).min() >= (gradients @ update).min() - 1e-6


def test_no_distance_is_the_mean():
    found = weights(balancer("cagrad", c=0.0), random_gradients())
    torch.testing.assert_close(found, torch.full((3,), 1 / 3).double())


def test_gradients_whose_hull_holds_zero():
    """The best direction then satisfies |d − g_0| <= c |g_0|."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -0.5]]).double()
    mean = gradients.mean(0)
    found = 1.25 * weights(balancer("cagrad"), gradients) @ gradients
    assert (found - mean).norm() <= 0.5 * mean.norm() * (1 + 1e-6)
    angles = torch.linspace(0, 2 * torch.pi, 720).double()
    ball = mean + 0.5 * mean.norm() * torch.stack([angles.cos(), angles.sin()], dim=1)
    assert (gradients @ found).min() >= (ball @ gradients.T).min(1).values.max() - 1e-6


def test_a_task_without_a_gradient_is_as_if_it_were_not_there():
    gradients = random_gradients()
    gradients[1] = 0
    found = weights(balancer("cagrad"), gradients)
    assert found[1] == 0
    alone = weights(balancer("cagrad", "ab"), gradients[[0, 2]])
    torch.testing.assert_close(found[[0, 2]], alone)
