# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import nn

from deltarec.layers.dropout import Dropout, sample_keys, set_sample_keys
from deltarec.layers.grouped import ByGroup
from tests.models.reference import linear


@pytest.mark.parametrize("group", [[2, 0, 0, 2, 3, 0], [1, 1, 1, 1, 1, 1], []])
def test_each_sample_goes_through_its_own_group(group: list[int]):
    model = ByGroup(lambda: nn.Linear(4, 2), 4).double()
    x = torch.randn(len(group), 4, dtype=torch.float64)
    y = model(x, torch.tensor(group, dtype=torch.int64))
    assert y.shape == (len(group), 2)
    for row, (sample, g) in enumerate(zip(x, group, strict=True)):
        torch.testing.assert_close(y[row], linear(model.members[g], sample))
    y.sum().backward()
    for g, member in enumerate(model.members):
        count = group.count(g)
        gradient: Any = member.bias.grad
        assert gradient.tolist() == [count, count], "an absent group has a gradient of 0"


def test_a_mask_does_not_depend_on_the_groups_of_others():
    shared = Dropout(0.5)
    model = ByGroup(lambda: shared, 3)
    set_sample_keys(model, sample_keys(torch.arange(8), 0, 0))
    x = torch.ones(8, 32)
    alone = shared(x)
    for group in ([0, 1, 2, 0, 1, 2, 0, 1], [2] * 8, [0, 0, 0, 0, 0, 0, 0, 2]):
        assert torch.equal(model(x, torch.tensor(group)), alone)


def test_groups_have_masks_of_their_own():
    model = ByGroup(lambda: Dropout(0.5), 2)
    set_sample_keys(model, sample_keys(torch.arange(4), 0, 0))
    x = torch.ones(4, 64)
    first, second = (model(x, torch.full((4,), g)) for g in (0, 1))
    assert not torch.equal(first, second)
