# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.adasparse import AdaSparse
from deltarec.models.mlp import MLPTrunk
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, linear


def adasparse(growth: float = 0.0) -> AdaSparse:
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=[6, 5])
    config = AdaSparse.Config(name="adasparse", epsilon=0.5, growth=growth, scenario_dim=2)
    model = AdaSparse(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    return model


def test_adasparse():
    model = adasparse(growth=0.5)
    inputs, leaves = fields()
    scenario = torch.tensor(SCENARIO)
    model(inputs, scenario)
    model.eval()(inputs, scenario)
    model.train()
    alpha = 1.5  # grown by the one step of training
    rows, pruned = [], 0
    for i, s in enumerate(SCENARIO):
        x = flat(inputs, i)
        for level, layer in enumerate([None, 0, 2]):
            if layer is not None:
                x = linear(model.trunk.mlp[layer], x)  # pyright: ignore
                x = x * (x > 0)
            known = torch.cat([model.scenarios.weight[s], x])
            factor = 2 / (1 + torch.exp(-alpha * linear(model.pruners[level], known)))
            x = x * factor * (factor > 0.5)
            pruned += int((factor <= 0.5).sum())
        rows.append(x)
    assert pruned > 10
    assert_equal(model, model(inputs, scenario), torch.stack(rows), leaves)


def test_properties():
    check_properties(adasparse())
