# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.models.mlp import MLPTrunk
from deltarec.models.towers import ScenarioTowers
from tests.models.properties import check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, mlp


def towers(**options: Any) -> ScenarioTowers:
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    config = ScenarioTowers.Config(name="towers", **options)
    return ScenarioTowers(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()


@pytest.mark.parametrize("hidden", [[4, 3], []])
@pytest.mark.parametrize("scenario", [[2, 0, 1, 2, 0], [2, 0, 0, 2, 0], [1, 1, 1, 1, 1]])
def test_each_sample_goes_through_its_scenarios_tower(hidden: list[int], scenario: list[int]):
    model: Any = towers(hidden=hidden)
    randomise(model)
    inputs, leaves = fields()
    wanted = []
    for i, s in enumerate(scenario):
        x = mlp(model.trunk.mlp, flat(inputs, i))
        for layer in model.towers.linears:
            x = (x @ layer.weight[s] + layer.bias[s]).relu()
        wanted.append(x)
    got = model(inputs, torch.tensor(scenario))
    assert_equal(model, got, torch.stack(wanted), leaves)
    assert model.output_dim == got.shape[1]


def test_properties(one_process: torch.device):
    check_properties(towers(hidden=[4]))


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match="a tower sees one scenario's samples only; use layer"):
        towers(hidden=[4], norm="batch")
