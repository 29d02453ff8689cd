# SPDX-License-Identifier: Apache-2.0
"""The area under the ROC curve by counting, exactly, also when the samples lie on many ranks.

AUC is the share of pairs (positive, negative) in which the positive has the higher score, a tie
counting one half. Twice the number of such wins is an integer, so no order of summation matters:
int64 holds it up to two thousand million samples of each class. Ranks hold ranges of scores: a
positive also wins against every negative of a lower rank, which takes nothing but their number.
"""

import torch
from torch import Tensor

from deltarec.metrics.metric import Metric, Samples


class AUC(Metric):
    """The chance that a positive is scored above a negative; undefined for one class."""

    kind = "binary"
    larger_is_better = True
    partition = "score"

    def local(self, samples: Samples, group: Tensor, num_groups: int) -> Tensor:
        present, *counts = count_wins(samples, group)
        partial = torch.zeros(num_groups, 3, dtype=torch.int64)
        partial[present] = torch.stack(counts, dim=1)
        return partial

    def combine(self, partials: Tensor) -> list[float | None]:
        double_wins, positives, negatives = partials.unbind(dim=2)  # each [ranks, num_groups]
        lower_negatives = negatives.cumsum(dim=0) - negatives
        double_wins = (double_wins + 2 * positives * lower_negatives).sum(dim=0)
        pairs = positives.sum(dim=0) * negatives.sum(dim=0)
        totals = zip(double_wins.tolist(), pairs.tolist(), strict=True)
        return [double / (2 * total) if total else None for double, total in totals]


def count_wins(samples: Samples, segment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count, in each segment, the pairs in which a positive is scored above a negative.

    Args:
        samples: n samples, ordered by prediction.
        segment: int64 `[n]`, any values.

    Returns:
        int64 `[segments]` each: the segments present, ascending; twice their wins, a tie being one;
        their positives; their negatives.
    """
    order = segment.argsort(stable=True)
    segment, score = segment[order], samples.prediction[order]
    positive = samples.label[order].long()

    # A run is a stretch of equal scores in one segment.
    starts = torch.ones_like(segment, dtype=torch.bool)
    starts[1:] = (score[1:] != score[:-1]) | (segment[1:] != segment[:-1])
    start = starts.nonzero().squeeze(dim=1)  # [runs]
    size = torch.cat([start, start.new_tensor([len(score)])]).diff()
    run_positives = _sum_to(len(start), starts.cumsum(dim=0) - 1, positive)
    run_negatives = size - run_positives

    present, run_segment = torch.unique_consecutive(segment[start], return_inverse=True)
    positives = _sum_to(len(present), run_segment, run_positives)
    negatives = _sum_to(len(present), run_segment, run_negatives)
    lower_segments = negatives.cumsum(dim=0) - negatives
    lower = run_negatives.cumsum(dim=0) - run_negatives - lower_segments[run_segment]
    run_double_wins = run_positives * (2 * lower + run_negatives)
    return present, _sum_to(len(present), run_segment, run_double_wins), positives, negatives


def _sum_to(length: int, index: Tensor, values: Tensor) -> Tensor:
    """Sum int64 `values` into `[length]` by their `index`."""
    return torch.zeros(length, dtype=torch.int64).index_add_(0, index, values)
