# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.mlp import MLPTrunk
from deltarec.models.sar_net import SARNet
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, linear, mlp


def test_sar_net():
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    config = SARNet.Config(name="sar_net", hidden=[5], shared=4, specific=2, expert=7)
    model = SARNet(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    inputs, leaves = fields()
    rows = []
    for i, s in enumerate(SCENARIO):
        x = mlp(model.trunk.mlp, flat(inputs, i) * model.scale[s] + model.shift[s])  # pyright: ignore
        assert model.specific.bias is not None
        specific = x @ model.specific.weight[s] + model.specific.bias[s]
        experts = torch.cat([linear(model.shared, x), specific])
        experts = experts * (experts > 0)
        weights = torch.softmax(linear(model.gate, x), 0)
        mixed = sum(weights[e] * experts[7 * e : 7 * e + 7] for e in range(6))
        rows.append(mlp(model.mlp, mixed))  # pyright: ignore
    assert_equal(model, model(inputs, torch.tensor(SCENARIO)), torch.stack(rows), leaves)
    check_properties(model)
