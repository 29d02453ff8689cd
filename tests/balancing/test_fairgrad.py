# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer, random_gradients, weights


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_the_fixed_point(alpha: float):
    gradients = random_gradients(4, 8)
    found = weights(balancer("fairgrad", "abcd", alpha=alpha), gradients)
    assert (found > 0).all()
    wanted = found ** (-1 / alpha)
    torch.testing.assert_close(gradients @ (found @ gradients), wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 20.0])
def test_norms_that_differ_by_four_orders_of_magnitude(alpha: float):
    for seed in range(8):
        norms = 10 ** -torch.linspace(0, 4, 5).double().roll(seed).unsqueeze(1)
        gradients = norms * random_gradients(5, 30, seed=seed, shift=0.0)
        found = weights(balancer("fairgrad", "abcde", alpha=alpha), gradients)
        wanted = found ** (-1 / alpha)
        torch.testing.assert_close(gradients @ (found @ gradients), wanted, rtol=1e-7, atol=0)
