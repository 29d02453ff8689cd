# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

from deltarec.metrics.ranking import RankingMetric, sum_by


class Recall(RankingMetric):
    """The share of a query's held-out items that are among the first k."""

    def values(self, ranks: Tensor, query: Tensor, num_queries: int) -> Tensor:
        found = sum_by(query, ranks <= self.k, num_queries)
        return found / sum_by(query, ranks > 0, num_queries)
