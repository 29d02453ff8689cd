# SPDX-License-Identifier: Apache-2.0
import torch
from torch import Tensor

from deltarec.metrics.auc import count_wins
from deltarec.metrics.metric import Metric, Samples


class GAUC(Metric):
    """The mean of the users' AUC, weighted by their samples, over users that have both classes.

    By scenario, only a user's samples in that scenario count. Undefined without such a user. Zhu et
    al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017.
    """

    kind = "binary"
    larger_is_better = True
    partition = "user"

    def local(self, samples: Samples, group: Tensor, num_groups: int) -> Tensor:
        assert samples.user is not None
        _, user = torch.unique(samples.user, return_inverse=True)
        present, double_wins, positives, negatives = count_wins(samples, user * num_groups + group)
        pairs = positives * negatives
        counted = pairs > 0
        weight = (positives + negatives)[counted].double()
        auc = double_wins[counted].double() / (2 * pairs[counted])
        partial = torch.zeros(num_groups, 2, dtype=torch.float64)
        rows = torch.stack([weight * auc, weight], dim=1)
        return partial.index_add_(0, present[counted] % num_groups, rows)

    def combine(self, partials: Tensor) -> list[float | None]:
        rows = partials.sum(dim=0).tolist()
        return [weighted / weight if weight else None for weighted, weight in rows]
