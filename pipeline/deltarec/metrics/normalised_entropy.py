# SPDX-License-Identifier: Apache-2.0
import math

from torch import Tensor

from deltarec.metrics.logloss import cross_entropy
from deltarec.metrics.metric import Samples, SumMetric


class NormalisedEntropy(SumMetric):
    """Logloss over that of predicting the base rate for every sample; undefined for one class.

    He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014.
    """

    kind = "binary"

    def terms(self, samples: Samples) -> list[Tensor]:
        return [cross_entropy(samples), samples.label]

    def value(self, sums: list[float], count: float) -> float | None:
        loss, positives = sums
        if positives in (0, count):
            return None
        rate = positives / count
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
        return loss / count / entropy
