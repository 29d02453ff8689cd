# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.balancing.small_problem import balancer, random_gradients, weights


def by_vectors(gradients: Tensor, rho: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """The paper's algorithm on explicit vectors; changes ρ."""
    turned = gradients.clone()
    for i, own in enumerate(turned):
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if i == j:
                continue
            other = gradients[j]
            phi, goal = own @ other / (own.norm() * other.norm()), rho[i, j].clone()
            rho[i, j] = (1 - beta) * goal + beta * phi
            if phi < goal:
                turn = goal * (1 - phi**2).sqrt() - phi * (1 - goal**2).sqrt()
                own += own.norm() * turn / (other.norm() * (1 - goal**2).sqrt()) * other
    return turned.sum(0)


def test_as_on_explicit_vectors_over_several_steps():
    method, twin = balancer("gradvac", "abcd"), balancer("gradvac", "abcd")
    rho = torch.zeros(4, 4).double()
    for seed in range(4):
        gradients = random_gradients(4, 5, seed)
        wanted = by_vectors(gradients, rho, 0.5, twin.draws.next_generator())
        torch.testing.assert_close(weights(method, gradients) @ gradients, wanted)
        torch.testing.assert_close(method.rho, rho)


def test_a_gradient_is_turned_to_the_goal():
    method = balancer("gradvac", "ab")
    method.rho.fill_(0.6)
    gradients = torch.tensor([[1.0, 0.0], [-0.5, 1.0]]).double()
    update = weights(method, gradients) @ gradients
    other = weights(method, gradients)  # of the second step, whose goals are lower
    turned = []
    for own, against in (gradients, gradients.flip(0)):
        phi = F.cosine_similarity(own, against, dim=0)
        by = own.norm() * (0.6 * (1 - phi**2).sqrt() - phi * 0.8) / (against.norm() * 0.8)
        turned.append(own + by * against)
        torch.testing.assert_close(
            F.cosine_similarity(turned[-1], against, dim=0), torch.tensor(0.6).double()
        )
    torch.testing.assert_close(update, turned[0] + turned[1])
    assert not torch.equal(other @ gradients, update)
