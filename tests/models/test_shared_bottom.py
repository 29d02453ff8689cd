# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.shared_bottom import SharedBottomHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, logistic, means, tower


@pytest.mark.parametrize("hidden", [[], [6, 3]])
def test_shared_bottom(hidden: list[int]):
    config = SharedBottomHeads.Config(name="shared_bottom", hidden=hidden)
    model = SharedBottomHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    wanted = [torch.cat([tower(model.towers, k, sample) for k in range(3)]) for sample in x]
    assert_equal(model, model(x), torch.stack(wanted), [x])


def test_losses_are_each_tasks_own():
    config = SharedBottomHeads.Config(name="shared_bottom")
    model = SharedBottomHeads(config, 4, PARALLEL).double()
    x, labels, mask = leaf(9, 4), torch.rand(9, 3).round().double(), torch.rand(9, 3) < 0.7
    columns = model(x)
    wanted = [
        torch.stack(
            [
                logistic(columns[i, t].sigmoid(), labels[i, t], task.positive_weight)
                for i in range(9)
                if mask[i, t]
            ]
        ).mean()
        for t, task in enumerate(PARALLEL.values())
    ]
    assert_equal(model, means(model.losses(model(x), labels, mask), 3), torch.stack(wanted), [x])
