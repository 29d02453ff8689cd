# SPDX-License-Identifier: Apache-2.0
"""Metrics over several evaluations, such as all partitions of a stream, from sums of fixed size.

Statistics of most metrics are sums over samples, so those of several evaluations are added. GAUC's
are sums over users: over a stream a user counts once for each partition. AUC's are not sums, for a
positive wins against the negatives of all other evaluations too. It is computed from histograms of
the logits instead, 2,048 bins of 0.01, where two samples of a bin are a tie: so its last digits are
lost, less than 1e-5 for logits with a deviation of 0.5 or more.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deltarec.distributed import all_sum
from deltarec.metrics import METRICS
from deltarec.metrics.evaluation import Evaluation, Result, TaskResult, values_of
from deltarec.metrics.metric import Metric, Samples

NUM_BINS = 2048
BIN_WIDTH = 0.01


class BinnedAUC(Metric):
    """AUC from the counts of negatives and positives by the logit of their score."""

    kind = "binary"
    larger_is_better = True

    def local(self, samples: Samples, group: Tensor, num_groups: int) -> Tensor:
        logit = torch.logit(samples.prediction) / BIN_WIDTH + NUM_BINS / 2
        place = logit.floor().clamp(0, NUM_BINS - 1).long()
        place += NUM_BINS * (samples.label.long() + 2 * group)
        counts = torch.bincount(place, minlength=2 * NUM_BINS * num_groups)
        return counts.view(num_groups, 2 * NUM_BINS).double()

    def combine(self, partials: Tensor) -> list[float | None]:
        negatives, positives = partials.sum(dim=0).split(NUM_BINS, dim=1)  # [num_groups, bins]
        below = negatives.cumsum(dim=1) - negatives
        wins = (positives * (below + negatives / 2)).sum(dim=1)
        pairs = positives.sum(dim=1) * negatives.sum(dim=1)
        totals = zip(wins.tolist(), pairs.tolist(), strict=True)
        return [won / pairs if pairs else None for won, pairs in totals]


ADDED: dict[str, type[Metric]] = {**METRICS, "auc": BinnedAUC}
"""What is added up for each metric."""


class Totals:
    """The sums of all evaluations so far, equal on every rank.

    Args:
        evaluation: one like those that will be told, by tasks and groupings.

    Attributes:
        tensors: float64 `[num_groups, k]` by `TASK/GROUPING/METRIC`, changed in place: the state.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.tasks = {task.name: task.metrics for task in evaluation.tasks}
        self.groupings = evaluation.groupings
        self.tensors: dict[str, Tensor] = {}
        nothing = torch.empty(0, dtype=torch.float64)
        nobody = torch.empty(0, dtype=torch.int64)
        empty = Samples(nothing, nothing, nobody, nobody)
        for task, metrics in self.tasks.items():
            for number, grouping in enumerate(self.groupings):
                groups = len(grouping.names)
                for name in metrics:
                    local = ADDED[name]().local(empty, nobody, groups)
                    self.tensors[f"{task}/{number}/{name}"] = torch.zeros_like(local)
                self.tensors[f"{task}/{number}/n"] = torch.zeros(groups, dtype=torch.float64)

    def add(
        self, task: str, grouping: int, samples: Samples, statistics: Mapping[str, Tensor]
    ) -> None:
        """Add one evaluation's part; a collective.

        Args:
            task: whose.
            grouping: its number.
            samples: this rank's, as they came.
            statistics: of each metric `[ranks, num_groups, k]`, and as `n` the counts.
        """
        groups = self.groupings[grouping]
        for name, of_ranks in statistics.items():
            if name in METRICS and ADDED[name] is not METRICS[name]:
                local = ADDED[name]().local(samples, groups.of(samples), len(groups.names))
                added = all_sum(local)
            else:
                added = of_ranks.sum(dim=0)
            self.tensors[f"{task}/{grouping}/{name}"] += added

    def compute(self) -> Result:
        """The values over everything that was added."""
        return {task: self._compute(task, metrics) for task, metrics in self.tasks.items()}

    def _compute(self, task: str, metrics: Sequence[str]) -> TaskResult:
        overall, *split = (
            values_of(
                metrics,
                grouping.names,
                {
                    name: self.tensors[f"{task}/{number}/{name}"].unsqueeze(0)
                    for name in [*metrics, "n"]
                },
                ADDED,
            )
            for number, grouping in enumerate(self.groupings)
        )
        return {
            "all": overall["all"],
            "scenario": {name: row for part in split for name, row in part.items()},
        }
