# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

from deltarec.metrics.ranking import RankingMetric, sum_by


class HitRate(RankingMetric):
    """Whether at least one of a query's held-out items is among the first k."""

    def values(self, ranks: Tensor, query: Tensor, num_queries: int) -> Tensor:
        return (sum_by(query, ranks <= self.k, num_queries) > 0).double()
