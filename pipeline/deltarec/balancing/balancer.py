# SPDX-License-Identifier: Apache-2.0
"""The interface of balancing methods."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from deltarec.config import Config


class Balancer(nn.Module, ABC):
    """Makes of the tasks' losses what is summed and differentiated.

    Args:
        config: the method's options.
        tasks: names of the tasks.
    """

    Config: type[Config]

    def __init__(self, config: Any, tasks: list[str]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Losses `[T]` to weighted losses `[T]`."""
