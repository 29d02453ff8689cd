# SPDX-License-Identifier: Apache-2.0
"""A balancing method by name, and gradients to balance."""

from typing import Any

import torch
from torch import Tensor

from deltarec.balancing import BALANCERS
from deltarec.balancing.gradients import TaskGradients
from deltarec.config import validate

OPTIONS: dict[str, dict[str, Any]] = {
    "static": {"weights": {"a": 2.0}},
    "dwa": {"period": 2},
    "stch": {"period": 2, "warmup": 1},
}
"""What methods are tried with whose defaults do not do."""


def balancer(name: str, tasks: str = "abc", **options: Any) -> Any:
    """A method for tasks of one letter each."""
    kind = BALANCERS[name]
    config = validate(kind.Config, {"name": name, **OPTIONS.get(name, {}), **options}, "test")
    return kind(config, list(tasks), 3)


def random_gradients(tasks: int = 3, size: int = 6, seed: int = 0, shift: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, size, dtype=torch.float64, generator=generator) + shift


def weights(method: Any, gradients: Tensor, losses: Tensor | None = None) -> Tensor:
    """The method's weights for explicit gradients `[T, N]`."""
    given = torch.ones(len(gradients)).double() if losses is None else losses.double()
    return method.weights(gradients @ gradients.T, given)


def task_gradients(matrix: Tensor) -> tuple[TaskGradients, Tensor]:
    """The gradients `[T, N]` as those of one shared parameter, and that parameter."""
    parameter = torch.zeros(matrix.shape[1], dtype=matrix.dtype, requires_grad=True)
    losses = matrix @ parameter + 1
    return TaskGradients(losses, [], [parameter]), parameter
