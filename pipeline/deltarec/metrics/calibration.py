# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

from deltarec.metrics.metric import Samples, SumMetric


class Calibration(SumMetric):
    """Predicted positives over observed ones, Σp / Σy; undefined without a positive."""

    kind = "binary"

    def terms(self, samples: Samples) -> list[Tensor]:
        return [samples.prediction, samples.label]

    def value(self, sums: list[float], count: float) -> float | None:
        predicted, observed = sums
        return predicted / observed if observed else None
