# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.roles import FieldShapes
from deltarec.models.wide_deep import WideDeepTrunk
from tests.models.reference import assert_equal, fields, flat, linear, mlp


def test_wide_deep():
    shapes = FieldShapes((4, 2), 3)
    config = WideDeepTrunk.Config(name="wide_deep", hidden=[7, 3])
    model = WideDeepTrunk(config, shapes).double()
    inputs, leaves = fields(shapes)
    rows = []
    for i in range(5):
        x = flat(inputs, i)
        rows.append(torch.cat([mlp(model.deep, x), linear(model.wide, x)]))
    assert_equal(model, model(inputs), torch.stack(rows), leaves)
    assert model.output_dim == 3 + 1
