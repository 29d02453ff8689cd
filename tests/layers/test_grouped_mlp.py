# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.layers.grouped_mlp import GroupedMLP
from deltarec.layers.mlp import MLPConfig
from tests.models.reference import assert_equal, leaf


def layers(*hidden: int, groups: int = 4, **options: Any) -> GroupedMLP:
    """Groups start alike; a test of which one is used needs them to differ."""
    model = GroupedMLP(3, MLPConfig(hidden=list(hidden), **options), groups).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def by_hand(model: Any, x: Tensor, g: int) -> Tensor:
    """One sample through its own group's layers."""
    for level, linear in enumerate(model.linears):
        x = x @ linear.weight[g] + linear.bias[g]
        if model.norms:
            norm = model.norms[level]
            x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
            x = x * norm.weight[g] + norm.bias[g]
        x = x * (x > 0)
    return x


@pytest.mark.parametrize("group", [[2, 0, 0, 2, 3, 0], [1] * 6, [3] * 40 + [0, 2, 0]])
@pytest.mark.parametrize("norm", [None, "layer"])
def test_each_sample_goes_through_its_own_groups_layers(group: list[int], norm: str | None):
    model, x = layers(5, 2, norm=norm), leaf(len(group), 3)
    wanted = torch.stack([by_hand(model, x[i], g) for i, g in enumerate(group)])
    assert_equal(model, model(x, torch.tensor(group)), wanted, [x])


def test_no_layers_are_the_identity():
    x = leaf(5, 3)
    assert torch.equal(layers()(x, torch.tensor([0, 1, 2, 3, 3])), x)


def test_a_mask_is_the_samples_whatever_the_groups_of_others():
    model = layers(32, groups=3, dropout=0.5)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    set_sample_keys(model, sample_keys(torch.arange(8), 0, 0))
    x = torch.ones(8, 3, dtype=torch.float64)
    first = model(x, torch.tensor([2] * 8))
    assert 0 < (first == 0).double().mean() < 1
    for group in ([0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 0, 0, 0, 0, 2]):
        assert torch.equal(model(x, torch.tensor(group)), first)


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match="norm: batch is over the samples of all groups"):
        layers(4, norm="batch")
