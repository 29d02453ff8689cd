# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from deltarec.metrics.metric import Samples, SumMetric


class LogLoss(SumMetric):
    """The mean cross entropy of labels and predicted probabilities, in nats."""

    kind = "binary"

    def terms(self, samples: Samples) -> list[Tensor]:
        return [cross_entropy(samples)]

    def value(self, sums: list[float], count: float) -> float | None:
        return sums[0] / count


def cross_entropy(samples: Samples) -> Tensor:
    """The cross entropy of each sample, float64 `[n]`."""
    p, y = samples.prediction, samples.label
    return -(y * torch.log(p) + (1 - y) * torch.log1p(-p))
