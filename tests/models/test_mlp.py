# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.mlp import MLPTrunk
from deltarec.models.roles import FieldShapes
from tests.models.reference import assert_equal, fields, flat, mlp


@pytest.mark.parametrize("hidden", [[7, 3], []])
@pytest.mark.parametrize("dims,num_dense", [((4, 2), 3), ((), 3), ((4,), 0)])
def test_mlp(hidden: list[int], dims: tuple[int, ...], num_dense: int):
    shapes = FieldShapes(dims, num_dense)
    model = MLPTrunk(MLPTrunk.Config(name="mlp", hidden=hidden), shapes).double()
    inputs, leaves = fields(shapes)
    wanted = torch.stack([mlp(model.mlp, flat(inputs, i)) for i in range(5)])
    assert_equal(model, model(inputs), wanted, leaves)
    assert model.output_dim == wanted.shape[1]
