# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

from deltarec.metrics.metric import Samples, SumMetric


class MAE(SumMetric):
    """The mean absolute error, in the label's unit."""

    kind = "regression"

    def terms(self, samples: Samples) -> list[Tensor]:
        return [(samples.prediction - samples.label).abs()]

    def value(self, sums: list[float], count: float) -> float | None:
        return sums[0] / count
