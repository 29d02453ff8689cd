# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from deltarec.config import validate
from deltarec.layers.batch_norm import GlobalBatchNorm
from deltarec.layers.dropout import Dropout
from deltarec.layers.mlp import ACTIVATIONS, MLP, MLPConfig


def test_normalises_before_and_drops_after_the_activation():
    model = MLP(4, [3, 2], "tanh", "batch", 0.5)
    kinds = [nn.Linear, GlobalBatchNorm, nn.Tanh, Dropout]
    assert [type(layer) for layer in model] == kinds * 2
    assert model.output_dim == 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_admitted(activation: str):
    config = validate(MLPConfig, {"hidden": [3], "activation": activation}, "test")
    assert MLP.of(4, config)(torch.randn(2, 4)).shape == (2, 3)


def test_without_layers_it_is_the_identity():
    x = torch.randn(2, 4)
    assert MLP(4, []).output_dim == 4
    assert torch.equal(MLP(4, [])(x), x)


@pytest.mark.parametrize("hidden", [[0], [8, -1]])
def test_a_layer_without_units_is_refused(hidden: list[int]):
    with pytest.raises(ValueError, match=r"hidden\.\d: got (0|-1): input should be greater than 0"):
        validate(MLPConfig, {"hidden": hidden}, "test")
