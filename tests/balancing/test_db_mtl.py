# SPDX-License-Identifier: Apache-2.0
import torch

from tests.balancing.small_problem import balancer, random_gradients, weights


def test_gradients_of_logarithms_of_equal_norm():
    gradients, losses = random_gradients(), torch.tensor([0.5, 2.0, 10.0]).double()
    found = weights(balancer("db_mtl", beta=0.0), gradients, losses)
    of_logs = gradients / (losses + 1e-8).unsqueeze(1)
    scaled = of_logs * (of_logs.norm(dim=1).max() / of_logs.norm(dim=1)).unsqueeze(1)
    torch.testing.assert_close(found @ gradients, scaled.sum(0))


def test_norms_are_running_means():
    method = balancer("db_mtl", "ab", beta=0.5)
    weights(method, torch.eye(2).double())
    found = weights(method, torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double())
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0]).double())
