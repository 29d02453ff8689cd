# SPDX-License-Identifier: Apache-2.0
import math

from torch import Tensor

from deltarec.metrics.metric import Samples, SumMetric


class RMSE(SumMetric):
    """The root of the mean squared error, in the label's unit."""

    kind = "regression"

    def terms(self, samples: Samples) -> list[Tensor]:
        return [(samples.prediction - samples.label).square()]

    def value(self, sums: list[float], count: float) -> float | None:
        return math.sqrt(sums[0] / count)
