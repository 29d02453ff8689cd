# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from deltarec.models.m3oe import M3oE
from deltarec.models.mlp import MLPTrunk
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, mlp


def m3oe(num_scenarios: int) -> M3oE:
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    config = M3oE.Config(name="m3oe", hidden=[5], experts=4)
    model = M3oE(config, SHAPES, num_scenarios, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    return model


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


@pytest.mark.parametrize("num_scenarios", [3, 1])
def test_m3oe(num_scenarios: int):
    model = m3oe(num_scenarios)
    inputs, leaves = fields()
    scenario = [min(s, num_scenarios - 1) for s in SCENARIO]
    assert model.own.bias is not None and model.gate.bias is not None
    rows = []
    for i, s in enumerate(scenario):
        x = mlp(model.trunk.mlp, flat(inputs, i))  # pyright: ignore
        star = x @ (model.star.shared_weight * model.star.weight[s])
        x = x + relu(star + model.star.shared_bias + model.star.bias[s])
        gate = torch.softmax(x.detach() @ model.gate.weight[s] + model.gate.bias[s], 0)
        shared = sum(gate[e] * mlp(model.experts[e], x) for e in range(4))
        alpha, beta = torch.sigmoid(model.balance[s])
        each = [x @ model.own.weight[t] + model.own.bias[t] for t in range(num_scenarios)]
        others = sum(each[t] for t in range(num_scenarios) if t != s) / max(1, num_scenarios - 1)
        y = shared + alpha * relu(beta * each[s] + (1 - beta) * others)
        centred = y - y.mean()
        y = centred / (centred.square().mean() + model.norm.eps) ** 0.5
        rows.append(y * model.norm.weight + model.norm.bias)
    assert_equal(model, model(inputs, torch.tensor(scenario)), torch.stack(rows), leaves)


def test_properties():
    check_properties(m3oe(3), reads_absent=True)
