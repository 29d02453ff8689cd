# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from typing import Literal

ROW_OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")
STEP_OPTIMIZERS = ("sgd", "adagrad", "adam")


@dataclass(frozen=True)
class Optimizer:
    """The optimiser of a table's rows, or of its steps.

    A row-wise optimiser keeps one second moment for each column block of a row (Adagrad's only
    moment), the mean of the squared gradients standing for each.
    """

    name: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
    learning_rate: float
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999

    def rates(self, number: int) -> list[float]:
        """The eight constants the kernels take, for the update that comes after `number` others.

        Learning rate, eps, beta1, 1 - beta1, beta2, 1 - beta2, and Adam's two bias corrections:
        computed once here, in double precision, so that every kernel has the same ones.
        """
        return [
            self.learning_rate,
            self.eps,
            self.beta1,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            1 - self.beta1 ** (number + 1),
            1 - self.beta2 ** (number + 1),
        ]

    @property
    def moments(self) -> tuple[Literal["element", "row"] | None, Literal["element", "row"] | None]:
        """For each of the two moments: one value an element, one a row and block, or none."""
        match self.name:
            case "sgd":
                return None, None
            case "adagrad":
                return "element", None
            case "rowwise_adagrad":
                return "row", None
            case "adam":
                return "element", "element"
            case "rowwise_adam":
                return "element", "row"
