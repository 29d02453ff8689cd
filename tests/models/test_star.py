# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.layers.batch_norm import set_real_samples
from deltarec.models.mlp import MLPTrunk
from deltarec.models.star import STAR
from tests.models.properties import SCENARIO, check_properties, randomise
from tests.models.reference import SHAPES, assert_equal, fields, flat, mlp


def star(**options: Any) -> STAR:
    torch.manual_seed(0)
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    config = STAR.Config(name="star", **{"hidden": [5, 4], **options})
    model = STAR(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    randomise(model)
    set_real_samples(model, torch.ones(5, dtype=torch.bool))
    return model


@pytest.mark.parametrize("auxiliary", [[7, 2], []])
def test_star(one_process: torch.device, auxiliary: list[int]):
    model = star(auxiliary=auxiliary)
    norm: Any = model.norm
    inputs, leaves = fields()
    x = [mlp(model.trunk.mlp, flat(inputs, i)) for i in range(5)]  # pyright: ignore
    rows = []
    for i, s in enumerate(SCENARIO):
        mine = [x[j] for j, other in enumerate(SCENARIO) if other == s]
        mean = sum(mine) / len(mine)
        var = sum((row - mean) ** 2 for row in mine) / len(mine)
        h = (x[i] - mean) / (var + norm.eps) ** 0.5
        h = h * (norm.shared_weight * norm.weight[s]) + norm.shared_bias + norm.bias[s]
        for layer in model.layers:
            h = h @ (layer.shared_weight * layer.weight[s])  # pyright: ignore
            h = h + layer.shared_bias + layer.bias[s]  # pyright: ignore
            h = h * (h > 0)
        if model.auxiliary is not None:
            beside = torch.cat([model.scenarios.weight[s], flat(inputs, i)])
            h = torch.cat([h, mlp(model.auxiliary, beside)])
        rows.append(h)
    assert_equal(model, model(inputs, torch.tensor(SCENARIO)), torch.stack(rows), leaves)
    check_properties(model)


def test_scenarios_start_as_one_shared_network(one_process: torch.device):
    torch.manual_seed(0)
    model = STAR(
        STAR.Config(name="star", hidden=[4], auxiliary=[]),
        SHAPES,
        3,
        lambda shapes: MLPTrunk(MLPTrunk.Config(name="mlp", hidden=[6]), shapes),
    ).double()
    inputs, _ = fields()
    model.eval()
    first, second = (model(inputs, torch.full((5,), s)) for s in (0, 2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"hidden": []}])
def test_other_norms_and_no_layers_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match="leave out norm and give hidden"):
        star(**options)
