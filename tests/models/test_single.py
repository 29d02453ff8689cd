# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.mlp import MLPTrunk
from deltarec.models.single import NoScenario
from tests.models.reference import SHAPES, assert_equal, fields, flat, mlp


def test_is_the_trunk_whatever_the_scenario():
    config = MLPTrunk.Config(name="mlp", hidden=[6])
    model = NoScenario(
        NoScenario.Config(name="none"), SHAPES, 3, lambda shapes: MLPTrunk(config, shapes)
    ).double()
    inputs, leaves = fields()
    wanted = torch.stack([mlp(model.trunk.mlp, flat(inputs, i)) for i in range(5)])
    assert_equal(model, model(inputs, torch.tensor([0, 2, 1, 0, 2])), wanted, leaves)
    assert model.output_dim == 6
