# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.balancing.aligned_mtl import alignment
from tests.balancing.small_problem import balancer, random_gradients, weights


def test_equal_singular_values_the_least_of_the_gradients():
    gradients = random_gradients(4, 7)
    aligned = alignment(gradients @ gradients.T) @ gradients
    least = torch.linalg.svdvals(gradients)[-1]
    torch.testing.assert_close(torch.linalg.svdvals(aligned), least.expand(4))
    found = weights(balancer("aligned_mtl", "abcd"), gradients)
    torch.testing.assert_close(found @ gradients, aligned.sum(0))


def test_orthogonal_gradients_of_equal_length_stay():
    found = weights(balancer("aligned_mtl"), 3 * torch.eye(3).double())
    torch.testing.assert_close(found, torch.ones(3).double())


def test_parallel_gradients_count_as_one_direction():
    gradients = torch.tensor([[1.0, 2.0], [2.0, 4.0], [2.0, -1.0]]).double()
    aligned = alignment(gradients @ gradients.T) @ gradients
    values = torch.linalg.svdvals(aligned)
    torch.testing.assert_close(values, torch.linalg.svdvals(gradients)[1].expand(2))
