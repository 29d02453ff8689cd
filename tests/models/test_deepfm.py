# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.deepfm import DeepFMTrunk
from deltarec.models.roles import FieldShapes
from tests.models.reference import SHAPES, assert_equal, fields, flat, linear, mlp

CONFIG = DeepFMTrunk.Config(name="deepfm", hidden=[7, 3])


def test_deepfm():
    model = DeepFMTrunk(CONFIG, SHAPES).double()
    inputs, leaves = fields()
    rows = []
    for i in range(5):
        x = flat(inputs, i)
        vectors = [vector[i] for vector in inputs.vectors]
        pairs = [a * b for n, a in enumerate(vectors) for b in vectors[n + 1 :]]
        rows.append(
            torch.cat([mlp(model.deep, x), linear(model.linear, x), torch.stack(pairs).sum(0)])
        )
    assert_equal(model, model(inputs), torch.stack(rows), leaves)
    assert model.output_dim == 3 + 1 + 4


@pytest.mark.parametrize(
    "dims,message",
    [
        ((4, 8, 4), r"deepfm: needs fields of one dimension, these have \[4, 8\]; give the tables"),
        ((), "name: deepfm: needs sparse features, there are none; choose another"),
    ],
)
def test_fields_without_a_common_dimension_are_refused(dims: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        DeepFMTrunk(CONFIG, FieldShapes(dims, 2))
