# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from tests.balancing.small_problem import balancer, random_gradients, weights

LOSSES = torch.tensor([0.5, 2.0, 10.0]).double()


def of_logarithms(gradients: Tensor, losses: Tensor) -> Tensor:
    """∇log L_k by autograd, of losses `[T]` with such gradients `[T, N]`."""
    x = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    logs = (gradients @ x + losses + 1e-8).log()
    return torch.stack([torch.autograd.grad(log, x, retain_graph=True)[0] for log in logs])


def test_every_task_contributes_as_much_as_the_largest():
    """With the batch's own norms: gradients of the logarithms, all of the largest one's length."""
    gradients = random_gradients()
    found = weights(balancer("db_mtl", beta=0.0), gradients, LOSSES)
    parts = found.unsqueeze(1) * gradients
    logs = of_logarithms(gradients, LOSSES)
    torch.testing.assert_close(parts.norm(dim=1), logs.norm(dim=1).max().expand(3))
    for part, log in zip(parts, logs, strict=True):
        assert torch.cosine_similarity(part, log, dim=0) > 1 - 1e-12


def test_a_loss_on_another_scale_changes_nothing():
    """log(c L) has the gradient of log L: what the method is for."""
    scale = torch.tensor([1e3, 1.0, 1e-2]).double()
    plain, scaled = balancer("db_mtl"), balancer("db_mtl")
    for seed in range(3):
        gradients = random_gradients(seed=seed)
        wanted = weights(plain, gradients, LOSSES) @ gradients
        rescaled = gradients * scale.unsqueeze(1)
        found = weights(scaled, rescaled, LOSSES * scale) @ rescaled
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_lengths_are_running_means_over_steps():
    """By the equations; a task without a gradient has no part and keeps its mean."""
    method, means = balancer("db_mtl", beta=0.8), None
    for step in range(5):
        gradients = random_gradients(seed=step)
        if step == 2:
            gradients[1] = 0
        logs = of_logarithms(gradients, LOSSES)
        now = logs.norm(dim=1)
        if means is None:
            means = now
        means = torch.where(now > 0, 0.8 * means + 0.2 * now, means)
        present = now > 0
        wanted = ((means[present].max() / means[present]).unsqueeze(1) * logs[present]).sum(0)
        torch.testing.assert_close(weights(method, gradients, LOSSES) @ gradients, wanted)
