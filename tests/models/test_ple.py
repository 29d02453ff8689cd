# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.models.ple import PLEHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, mixed, mlp, tower


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("own,shared", [(1, 1), (2, 3)])
def test_ple(levels: int, own: int, shared: int):
    config = PLEHeads.Config(
        name="ple", levels=levels, experts=own, shared_experts=shared, hidden=[6], tower=[3]
    )
    model = PLEHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        inputs, common = [sample] * 3, sample
        layer: Any
        for level, layer in enumerate(model.levels):
            shared_outputs = [mlp(expert, common) for expert in layer.shared]
            outputs = [
                [mlp(expert, inputs[k]) for expert in experts]
                for k, experts in enumerate(layer.experts)
            ]
            if level < levels - 1:
                everything = [*outputs[0], *outputs[1], *outputs[2], *shared_outputs]
                common = mixed(layer.shared_gate, common, everything)
            else:
                assert layer.shared_gate is None
            inputs = [
                mixed(gate, inputs[k], [*outputs[k], *shared_outputs])
                for k, gate in enumerate(layer.gates)
            ]
        rows.append(torch.cat([tower(model.towers, k, h) for k, h in enumerate(inputs)]))
    assert_equal(model, model(x), torch.stack(rows), [x])
