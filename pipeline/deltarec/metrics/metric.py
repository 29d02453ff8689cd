# SPDX-License-Identifier: Apache-2.0
"""What a metric is: partial statistics of each rank's samples, and a value from those of all ranks.

A metric never sees ranks and scenarios as such. It gets samples, each in one *group* (all samples
are one group, or each scenario is one), and answers one row of statistics a group; the rows of all
ranks together give the values. Metrics that are not sums say by their `partition` which samples
must have met on one rank before; `evaluation.py` moves them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kind = Literal["binary", "regression", "pairwise"]
Partition = Literal["none", "score", "user"]


@dataclass(frozen=True)
class Samples:
    """The labelled samples of one task that lie on this rank."""

    prediction: Tensor
    """float64 `[n]`: clipped probabilities of a binary task, values of a regression task."""
    label: Tensor
    """float64 `[n]`: 0 or 1 in a binary task."""
    scenario: Tensor
    """int64 `[n]`, in `[0, num_scenarios)`."""
    user: Tensor | None
    """int64 `[n]`, any values; None where no metric asks for users."""
    slices: Tensor | None = None
    """int64 `[n, S]`, buckets by S columns; None where there is no such column."""


class Metric(ABC):
    """A number that says how good the predictions of one task are."""

    kind: ClassVar[Kind]
    """The tasks it is for."""
    larger_is_better: ClassVar[bool] = False
    """Which way early stopping looks."""
    partition: ClassVar[Partition] = "none"
    """How samples lie on ranks when `local` gets them.

    `none`: as they came. `score`: no prediction on a rank is above one on a higher rank, and equal
    ones share a rank. `user`: a user's samples share a rank. In the latter two they are ordered by
    prediction.
    """

    @abstractmethod
    def local(self, samples: Samples, group: Tensor, num_groups: int) -> Tensor:
        """The statistics `[num_groups, k]` of this rank's samples.

        Args:
            samples: n samples, possibly none.
            group: int64 `[n]`, the group of each, in `[0, num_groups)`.
            num_groups: how many groups there are, with or without samples here.
        """

    @abstractmethod
    def combine(self, partials: Tensor) -> list[float | None]:
        """The value of each group, None where it is not defined.

        Args:
            partials: `[ranks, num_groups, k]`, what `local` gave on each rank, in their order.
        """


class SumMetric(Metric):
    """A metric that is a function of sums over samples."""

    @abstractmethod
    def terms(self, samples: Samples) -> list[Tensor]:
        """What is summed: k tensors float64 `[n]`; the number of samples is added to them."""

    @abstractmethod
    def value(self, sums: list[float], count: float) -> float | None:
        """The metric of at least one sample.

        Args:
            sums: the k sums, in the order of `terms`.
            count: the number of samples.
        """

    def local(self, samples: Samples, group: Tensor, num_groups: int) -> Tensor:
        terms = torch.stack([*self.terms(samples), torch.ones_like(samples.label)], dim=1)
        return terms.new_zeros(num_groups, terms.shape[1]).index_add_(0, group, terms)

    def combine(self, partials: Tensor) -> list[float | None]:
        rows = partials.sum(dim=0).tolist()
        return [self.value(sums, count) if count else None for *sums, count in rows]
