# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.balancing.draws import Place
from deltarec.balancing.gradients import TaskGradients
from tests.balancing.small_problem import balancer, random_gradients


def test_by_feature_and_parameter_over_several_steps(one_process: torch.device):
    method = balancer("metabalance", "ab")
    parameter = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    method.prepare(["x", "y"], {"x": 5, "y": 5}, [parameter], [])
    means = torch.zeros(3, 2).double()
    for step in range(3):
        vectors = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)  # x has 2 columns
        matrix = random_gradients(2, 34, seed=step) * torch.tensor([[1.0], [20.0]])
        losses = matrix @ torch.cat([vectors.flatten(), parameter])
        place = Place({"y": 4, "x": 2}, torch.arange(5))
        gradients = TaskGradients(losses, [vectors], [parameter], (), [place])
        method.combine(gradients)
        boundary = matrix[:, :30].reshape(2, 5, 6)
        tensors = [boundary[..., 4:], boundary[..., :4], matrix[:, 30:]]
        wanted = []
        for mean, tensor in zip(means, tensors, strict=True):
            mean.mul_(0.9).add_(0.1 * tensor.flatten(1).norm(dim=1))
            own, other = tensor
            wanted.append(own + 0.7 * mean[0] / mean[1] * other + 0.3 * other)
        found = gradients.combined_boundary[0]
        torch.testing.assert_close(found, torch.cat([wanted[1], wanted[0]], dim=1))
        torch.testing.assert_close(gradients.combined_shared[0], wanted[2])


def test_the_whole_share_makes_norms_equal(one_process: torch.device):
    method = balancer("metabalance", "ab", r=1.0, beta=0.0)
    parameter = torch.zeros(3, requires_grad=True)
    method.prepare([], {}, [parameter], [])
    matrix = torch.tensor([[0.0, 2.0, 0.0], [5.0, 0.0, 0.0]])
    gradients = TaskGradients(matrix @ parameter, [], [parameter])
    method.combine(gradients)
    torch.testing.assert_close(gradients.combined_shared[0], torch.tensor([2.0, 2.0, 0.0]))


def test_batches_without_a_task_do_not_make_its_norm_smaller(one_process: torch.device):
    """Nor does a late beginning: norms of 1 and 2, the second task in every fourth batch."""
    method = balancer("metabalance", "ab", r=1.0)
    parameter = torch.zeros(2, requires_grad=True)
    method.prepare([], {}, [parameter], [])
    for step in range(12):
        there = step % 4 == 3
        matrix = torch.tensor([[1.0, 0.0], [0.0, 2.0 * there]])
        gradients = TaskGradients(matrix @ parameter, [], [parameter])
        method.combine(gradients)
        wanted = torch.tensor([1.0, float(there)])
        torch.testing.assert_close(gradients.combined_shared[0], wanted)
