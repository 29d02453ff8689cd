# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from deltarec.metrics.ranking import RankingMetric, sum_by


class NDCG(RankingMetric):
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002) of binary relevance.

    Items at rank r ≤ k gain 1 / log2(1 + r); divided by what min(k, held-out items) gain at best.
    """

    def values(self, ranks: Tensor, query: Tensor, num_queries: int) -> Tensor:
        gains = torch.where(ranks <= self.k, 1 / torch.log2(1 + ranks.double()), 0.0)
        best = (1 / torch.log2(torch.arange(2, self.k + 2).double())).cumsum(0)
        held_out = sum_by(query, ranks > 0, num_queries).long()
        return sum_by(query, gains, num_queries) / best[held_out.clamp(max=self.k) - 1]
