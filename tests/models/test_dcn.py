# SPDX-License-Identifier: Apache-2.0
from typing import Literal

import pytest
import torch

from deltarec.models.dcn import DCNTrunk
from deltarec.models.roles import FieldShapes
from tests.layers.test_interactions import crossed
from tests.models.reference import assert_equal, fields, flat, mlp

SHAPES = FieldShapes((4, 2), 3)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("hidden", [[7, 3], []])
@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn(structure: Literal["parallel", "stacked"], hidden: list[int], rank: int | None):
    config = DCNTrunk.Config(
        name="dcn", hidden=hidden, cross_layers=3, rank=rank, structure=structure
    )
    model = DCNTrunk(config, SHAPES).double()
    inputs, leaves = fields(SHAPES)
    rows = []
    for i in range(5):
        x = flat(inputs, i)
        if structure == "stacked":
            rows.append(mlp(model.deep, crossed(model.cross, x)))
        else:
            rows.append(torch.cat([crossed(model.cross, x), mlp(model.deep, x)]))
    assert_equal(model, model(inputs), torch.stack(rows), leaves)
    assert model.output_dim == rows[0].numel()
