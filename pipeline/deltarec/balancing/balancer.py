# SPDX-License-Identifier: Apache-2.0
"""The interfaces of balancing methods: those that weigh losses, and those that need gradients."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from deltarec.balancing.gradients import TaskGradients
from deltarec.config import Config


class Balancer(nn.Module, ABC):
    """Makes of the tasks' losses what is summed and differentiated.

    Args:
        config: the method's options.
        tasks: names of the tasks, the main one first.
    """

    Config: type[Config]

    def __init__(self, config: Any, tasks: list[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """This rank's shares of the losses `[T]` to weighted losses `[T]`."""


class GradientBalancer(Balancer):
    """Makes one gradient of the tasks' gradients; `gradients.py` says where they are taken."""

    @abstractmethod
    def combine(self, gradients: TaskGradients) -> None:
        """Set the combined gradients; called once a training step, on all ranks."""

    def forward(self, losses: Tensor) -> Tensor:
        """The losses as they are: in evaluations, and for the steps in ALPT's second pass."""
        return losses


class WeightingBalancer(GradientBalancer):
    """Sums the tasks' gradients with weights that depend on their inner products alone."""

    @abstractmethod
    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The tasks' weights, equal on all ranks.

        Args:
            gram: inner products of the tasks' gradients of the global batch, float64 `[T, T]`.
            losses: the tasks' losses over the global batch, float64 `[T]`.

        Returns:
            `[T]`
        """

    def combine(self, gradients: TaskGradients) -> None:
        gradients.weigh(self.weights(gradients.gram(), gradients.losses()))
