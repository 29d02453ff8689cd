# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.layers import star_linear
from deltarec.layers.grouped_linear import Groups
from deltarec.layers.star_linear import StarLinear
from tests.models.reference import assert_equal, leaf


@pytest.mark.parametrize("elements", [1, 12, 1 << 19])
@pytest.mark.parametrize("group", [[2, 0, 0, 2, 3, 0], [3] * 40 + [0, 2, 0]])
def test_weights_are_the_products(monkeypatch: pytest.MonkeyPatch, group: list[int], elements: int):
    """A large group has several blocks; one block at a time, two, and all at once."""
    monkeypatch.setattr(star_linear, "CHUNK_ELEMENTS", elements)
    layer, x = StarLinear(3, 2, 4).double(), leaf(len(group), 3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    groups = Groups.of(torch.tensor(group), 4)
    assert len(groups.block_group) > len(set(group)) or len(group) < 40
    wanted = [
        x[i] @ (layer.shared_weight * layer.weight[g]) + layer.shared_bias + layer.bias[g]
        for i, g in enumerate(group)
    ]
    assert_equal(layer, layer(x, groups), torch.stack(wanted), [x])
