# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from tests.balancing.small_problem import balancer, random_gradients, weights


def by_vectors(gradients: Tensor, generator: torch.Generator) -> Tensor:
    """The paper's algorithm on explicit vectors."""
    projected = gradients.clone()
    for i, own in enumerate(projected):
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            product = own @ gradients[j]
            if i != j and product < 0:
                own -= product / gradients[j].square().sum() * gradients[j]
    return projected.sum(0)


def test_as_on_explicit_vectors_in_the_order_of_the_step():
    method, twin = balancer("pcgrad", "abcd"), balancer("pcgrad", "abcd")
    for seed in range(4):
        gradients = random_gradients(4, 3, seed, shift=0)
        wanted = by_vectors(gradients, twin.draws.next_generator())
        torch.testing.assert_close(weights(method, gradients) @ gradients, wanted)


def test_two_tasks_keep_no_conflict():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double()
    update = weights(balancer("pcgrad", "ab"), gradients) @ gradients
    assert (gradients @ update >= -1e-12).all()
    agreeing = gradients.abs()
    assert torch.equal(weights(balancer("pcgrad", "ab"), agreeing), torch.ones(2).double())
