# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from deltarec.layers.grouped_linear import GroupedLinear, Groups

GROUPS = [[2, 0, 0, 2, 3, 0], [1] * 6, [0, 1, 2, 3], [3] * 40 + [0, 2, 0], []]


def different(layer: GroupedLinear) -> GroupedLinear:
    """Groups start alike; a test of which one is used needs them to differ."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bias", [True, False])
def test_each_sample_is_multiplied_by_its_own_groups_weights(group: list[int], bias: bool):
    layer = different(GroupedLinear(3, 2, 4, bias).double())
    x = torch.randn(len(group), 3, dtype=torch.float64, requires_grad=True)
    wanted = [x[i] @ layer.weight[g] for i, g in enumerate(group)]
    if layer.bias is not None:
        wanted = [row + layer.bias[g] for row, g in zip(wanted, group, strict=True)]
    expected = torch.stack(wanted) if wanted else x[:, :2]
    ids = torch.tensor(group, dtype=torch.int64)
    got = layer(x, Groups.of(ids, 4))
    assert got.shape == (len(group), 2)
    torch.testing.assert_close(got, expected)
    leaves = [x, *layer.parameters()]
    upstream = torch.randn_like(got)
    mine, theirs = (
        torch.autograd.grad(y, leaves, upstream, materialize_grads=True, allow_unused=True)
        for y in (got, expected)
    )
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("group", GROUPS)
def test_blocks_hold_every_sample_once_and_one_group_each(group: list[int]):
    ids = torch.tensor(group, dtype=torch.int64)
    groups = Groups.of(ids, 4)
    assert groups.place.unique().numel() == len(group)
    assert torch.equal(groups.block_group[groups.block], ids)
    assert set(groups.block_group.tolist()) == set(group), "absent groups have no block"
    x = torch.randn(len(group), 3)
    assert torch.equal(groups.from_blocks(groups.into_blocks(x)), x)


def test_weights_of_absent_groups_are_not_read():
    layer = GroupedLinear(3, 2, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[[0, 2]] = torch.nan
    x = torch.randn(5, 3, requires_grad=True)
    y = layer(x, Groups.of(torch.tensor([1, 3, 3, 1, 3]), 4))
    y.sum().backward()
    tensors: list[Tensor | None] = [y, x.grad, layer.weight.grad]
    for tensor in tensors:
        assert tensor is not None and tensor.isfinite().all()
    gradient = layer.weight.grad
    assert gradient is not None and not gradient[[0, 2]].any() and gradient[[1, 3]].all()


@pytest.mark.parametrize("sizes", [[4096, 1, 1], [14] * 300, [1000, 500, 250] + [3] * 297])
def test_blocks_waste_little(sizes: list[int]):
    """Neither rows nor weights are multiplied, however the samples are spread."""
    ids = torch.repeat_interleave(torch.tensor(sizes))
    groups = Groups.of(ids, len(sizes))
    assert len(groups.source) <= 3.5 * len(ids)
    assert len(groups.block_group) <= 2 * len(sizes) + 128
