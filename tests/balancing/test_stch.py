# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer


@pytest.mark.parametrize("mu", [1.0, 0.1])
def test_the_gradient_of_the_smooth_maximum_after_the_warm_up(one_process: torch.device, mu: float):
    method = balancer("stch", "ab", mu=mu, period=None, warmup=2)
    for losses in ([9.0, 9.0], [1.0, 2.0]):
        given = torch.tensor(losses)
        torch.testing.assert_close(method(given), torch.ones(2))  # the gradient of Σ log L
        method.after_epoch()
    losses = torch.tensor([0.5, 0.8], requires_grad=True)
    nadir = torch.tensor([1.0, 2.0])
    (mu * ((losses / nadir).log() / mu).exp().sum().log()).backward()
    torch.testing.assert_close(method(losses) / losses, losses.grad)


def test_the_nadir_is_of_batches_with_samples(one_process: torch.device):
    method = balancer("stch", "ab", period=4, warmup=1)
    for there in (1, 0, 0, 0):
        method.weights(torch.tensor([1.0, 2.0 * there]).double())
    found = method.weights(torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(method.nadir, torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25]).double())
