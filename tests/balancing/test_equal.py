# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.balancing.equal import Equal


def test_leaves_the_losses_as_they_are():
    losses = torch.tensor([0.5, 2.0], requires_grad=True)
    balanced = Equal(Equal.Config(name="equal"), ["click", "buy"])(losses)
    balanced.sum().backward()
    assert torch.equal(balanced, losses)
    assert losses.grad is not None and losses.grad.tolist() == [1, 1]
