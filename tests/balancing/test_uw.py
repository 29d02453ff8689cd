# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from tests.balancing.small_problem import balancer


@pytest.mark.parametrize(("form", "factor"), [("regression", 0.5), ("classification", 1.0)])
def test_the_equation_and_its_gradients(form: str, factor: float):
    method = balancer("uw", form=form)
    losses = torch.tensor([0.5, 2.0, 0.0], requires_grad=True)
    weighted = method(losses)
    weight = factor * math.exp(0.5)
    torch.testing.assert_close(weighted, weight * losses - 0.25)
    weighted.sum().backward()
    assert losses.grad is not None
    torch.testing.assert_close(losses.grad, torch.full((3,), weight))
    torch.testing.assert_close(method.log_variance.grad, 0.5 - weight * losses.detach())
