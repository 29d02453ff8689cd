# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer, random_gradients, weights


def test_as_by_automatic_differentiation():
    method = balancer("gradnorm")
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.025)
    first = None
    for step in range(5):
        gradients = random_gradients(seed=step) * torch.tensor([[1.0], [5.0], [0.2]])
        losses = torch.tensor([1.0, 2.0, 3.0]).double() / (1 + torch.arange(3) * step)
        first = losses if first is None else first
        torch.testing.assert_close(weights(method, gradients, losses), w.detach())
        norms = (w.unsqueeze(1) * gradients).norm(dim=1)
        rate = (losses / first) / (losses / first).mean()
        goal = (norms.mean() * rate**1.5).detach()
        optimizer.zero_grad()
        (norms - goal).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            w *= 3 / w.sum()
    assert method.learned.sum().item() == pytest.approx(3)


def test_norms_become_equal_where_all_learn_alike():
    method = balancer("gradnorm", "ab", alpha=0.0, lr=0.02)
    gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    for _ in range(100):
        found = weights(method, gradients)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5]).double(), rtol=0, atol=0.05)


def test_a_task_without_a_gradient_keeps_its_weight():
    method = balancer("gradnorm")
    gradients = random_gradients() * torch.tensor([[1.0], [5.0], [0.2]])
    for _ in range(5):
        weights(method, gradients)
    before = method.learned.clone()
    gradients[1] = 0
    weights(method, gradients, torch.tensor([1.0, 0.0, 1.0]))
    assert method.learned[1] == before[1]
    assert (method.learned[[0, 2]] != before[[0, 2]]).all()
    assert method.learned.sum().item() == pytest.approx(3)
