# SPDX-License-Identifier: Apache-2.0
"""What a ranking metric is: a number for each query, made of the ranks of its held-out items."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class RankingMetric(ABC):
    """A mean over queries; larger is better.

    Args:
        k: ranks up to this one count.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    @abstractmethod
    def values(self, ranks: Tensor, query: Tensor, num_queries: int) -> Tensor:
        """The metric of each query, float64 `[num_queries]`.

        Args:
            ranks: int64 `[n]`, from 1, of the held-out items.
            query: int64 `[n]`, the query of each; every query has at least one.
            num_queries: how many there are.
        """


def sum_by(query: Tensor, values: Tensor, num_queries: int) -> Tensor:
    """Sums of `[n]` by query, float64 `[num_queries]`."""
    sums = torch.zeros(num_queries, dtype=torch.float64)
    return sums.index_add_(0, query, values.double())
