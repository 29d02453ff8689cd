# SPDX-License-Identifier: Apache-2.0
"""Adam (Kingma and Ba, 2015) for the few numbers that a balancing method learns by itself."""

import torch
from torch import Tensor, nn


class BufferedAdam(nn.Module):
    """Its state is in persistent buffers, float64.

    Args:
        size: how many numbers are learned.
        lr: the learning rate.
        weight_decay: added to the gradient, times the value.
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, size: int, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.register_buffer("first", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self, value: Tensor, gradient: Tensor) -> None:
        """Update the value in place; both float64 `[size]`."""
        gradient = gradient.to(value) + self.weight_decay * value
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.001)
        steps = self.steps.double()
        first = self.first / (1 - 0.9**steps)
        second = self.second / (1 - 0.999**steps)
        value -= self.lr * first / (second.sqrt() + 1e-8)
