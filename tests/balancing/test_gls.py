# SPDX-License-Identifier: Apache-2.0
import torch

from tests.balancing.small_problem import balancer


def test_the_gradient_of_the_geometric_mean(one_process: torch.device):
    losses = torch.tensor([0.5, 2.0, 3.0], requires_grad=True)
    losses.prod().pow(1 / 3).backward()
    weighted = balancer("gls")(losses)
    torch.testing.assert_close(weighted / losses, losses.grad)


def test_a_zero_loss_is_left_out(one_process: torch.device):
    found = balancer("gls")(torch.tensor([0.5, 0.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0, 0.5]))
