# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.config import validate
from deltarec.models.mlp import MLPTrunk
from deltarec.models.pepnet import PEPNet
from deltarec.models.roles import FieldShapes
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import assert_equal, fields, flat, linear

SHAPES = FieldShapes((4, 4, 4), 2, ("user", "city", "item"))


def pepnet(hidden: tuple[int, ...] = (6, 5), **options: Any) -> PEPNet:
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=list(hidden))
    config = validate(
        PEPNet.Config, {"name": "pepnet", "gate": 7, "scenario_dim": 2, **options}, "test"
    )
    model = PEPNet(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    return model


def gate(model: Any, x: Tensor) -> Tensor:
    h = linear(model[0], x)
    return 2 / (1 + torch.exp(-linear(model[2], h * (h > 0))))


@pytest.mark.parametrize("options", [{}, {"epnet": False}, {"ppnet": False}, {"ids": ["item"]}])
def test_pepnet(options: dict[str, Any]):
    model = pepnet(**options)
    inputs, leaves = fields(SHAPES)
    seen = [2] if "ids" in options else [0, 1, 2]
    rows = []
    for i, s in enumerate(SCENARIO):
        x = flat(inputs, i)
        ids = [x[4 * f : 4 * f + 4] for f in seen]
        if model.epnet is not None:
            scenario = model.scenarios.weight[s]
            x = x * gate(model.epnet, torch.cat([scenario, x.detach()]))
        known = torch.cat([*ids, x.detach()])
        for level, layer in enumerate([0, 2]):
            x = linear(model.trunk.mlp[layer], x)  # pyright: ignore
            x = x * (x > 0)
            if len(model.ppnet):
                x = x * gate(model.ppnet[level], known)
        rows.append(x)
    assert_equal(model, model(inputs, torch.tensor(SCENARIO)), torch.stack(rows), leaves)
    check_properties(model, reads_absent=model.epnet is None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epnet": False, "ppnet": False}, "leaves nothing; use name: none"),
        ({"ids": ["author"]}, "ids: 'author' is no sparse feature: one of user, city, item"),
        ({"hidden": ()}, "ppnet: the trunk has no hidden layers to gate"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pepnet(**options)
