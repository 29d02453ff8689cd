# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.models.adatt import AdaTTHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, mixed, mlp, tower


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("own,shared", [(1, 0), (3, 0), (1, 1), (2, 1), (1, 2)])
def test_adatt(levels: int, own: int, shared: int):
    """With one expert in every unit it is added whole, otherwise by learned weights."""
    config = AdaTTHeads.Config(
        name="adatt", levels=levels, experts=own, shared_experts=shared, hidden=[6], tower=[3]
    )
    model = AdaTTHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        inputs = [sample] * (4 if shared else 3)
        level: Any
        for depth, level in enumerate(model.levels):
            outputs = [
                [mlp(expert, inputs[u]) for expert in experts]
                for u, experts in enumerate(level.experts)
            ]
            assert len(level.gates) == (3 if depth == levels - 1 else len(inputs))
            following = []
            for u, gate in enumerate(level.gates):
                fused = mixed(gate, inputs[u], [h for unit in outputs for h in unit])
                if own == 1 and shared < 2:
                    following.append(fused + outputs[u][0])
                else:
                    parts = [level.native[u][i] * h for i, h in enumerate(outputs[u])]
                    following.append(fused + sum(parts))
            inputs = following
        rows.append(torch.cat([tower(model.towers, k, h) for k, h in enumerate(inputs)]))
    assert_equal(model, model(x), torch.stack(rows), [x])
