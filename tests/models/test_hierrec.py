# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.config import validate
from deltarec.layers.generated import FactoredGeneratedLinear, GeneratedLinear
from deltarec.models.hierrec import HierRec
from deltarec.models.mlp import MLPTrunk
from deltarec.models.roles import FieldShapes
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, linear, mlp


def hierrec(**options: Any) -> HierRec:
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    options = {"hidden": [5], "bottleneck": 2, "implicit": 2, "scenario_dim": 4, **options}
    config = validate(HierRec.Config, {"name": "hierrec", **options}, "test")
    model = HierRec(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    return model


def made(layer: Any, condition: Tensor) -> tuple[Tensor, Tensor]:
    """W(c) and b(c), built."""
    if isinstance(layer, GeneratedLinear):
        return linear(layer.weight, condition).view(layer.shape), linear(layer.bias, condition)
    scale = linear(layer.scale, condition)
    rank = len(scale)
    down, up = layer.left.weight, layer.right.weight[:, :rank]
    weight = sum(scale[q] * torch.outer(down[q], up[:, q]) for q in range(rank))
    return weight, layer.right.weight[:, rank:] @ scale + layer.right.bias  # pyright: ignore


def bottleneck(part: Any, x: Tensor, condition: Tensor) -> Tensor:
    for layer in (part.down, part.up):
        weight, bias = made(layer, condition)
        x = x @ weight + bias
    return x


def condition(implicit: Any, g: int, scenario: Tensor, inputs: list[Tensor]) -> Tensor:
    """c_g of one sample: its fields, weighted by the scenario, after self-attention."""
    part = implicit.importance.shape[1]
    scores = scenario[g * part : (g + 1) * part] @ implicit.importance[g]
    weights = torch.softmax(scores + implicit.importance_bias[g], 0)
    vectors = torch.stack([w * x for w, x in zip(weights, inputs, strict=True)])
    if implicit.attention is None:
        return vectors.flatten()
    query, key, value = (vectors @ implicit.attention.project.weight.T).chunk(3, dim=1)
    attention = torch.softmax(query @ key.T / vectors.shape[1] ** 0.5, 1)
    return torch.cat([linear(implicit.attention.output, row) for row in attention @ value])


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"attention": False}, {"implicit": 0}, {"explicit": False}, {"hidden": []}],
    ids=["whole", "no attention", "no implicit", "no explicit", "no layers behind"],
)
def test_hierrec(options: dict[str, Any], rank: int | None):
    model = hierrec(rank=rank, **options)
    inputs, leaves = fields()
    rows = []
    for i, s in enumerate(SCENARIO):
        x = mlp(model.trunk.mlp, flat(inputs, i))  # pyright: ignore
        scenario = model.scenarios[s]
        if model.explicit is not None:
            x = bottleneck(model.explicit, x, scenario)
        if model.implicit is not None:
            sample = [vector[i] for vector in inputs.vectors]
            conditions = [condition(model.implicit, g, scenario, sample) for g in range(2)]
            x = torch.cat([bottleneck(model.implicit.layers, x, c) for c in conditions])
        rows.append(mlp(model.mlp, x))
    got = model(inputs, torch.tensor(SCENARIO))
    assert_equal(model, got, torch.stack(rows), leaves)
    check_properties(model)


def test_the_factored_layer_starts_at_the_full_ones_scale():
    torch.manual_seed(0)
    x, c = torch.randn(512, 1, 32), torch.randn(512, 2, 16) * 0.01
    for layer in (GeneratedLinear(32, 64, 16), FactoredGeneratedLinear(32, 64, 16, 32)):
        assert 0.5 < layer(x, c).std() < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explicit": False, "implicit": 0}, "leaves nothing; use name: none"),
        ({"implicit": 3}, "scenario_dim: each of the 3 implicit layers .* 4 is no multiple"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        hierrec(**options)


def test_fields_of_different_widths_are_refused():
    trunk = MLPTrunk.Config(name="mlp", hidden=[])
    config = HierRec.Config(name="hierrec")
    with pytest.raises(ValueError, match=r"name: hierrec: needs .* have \[2, 4\]; give the tables"):
        HierRec(config, FieldShapes((4, 2), 0), 3, lambda shapes: MLPTrunk(trunk, shapes))
