# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.mmoe import MMoEHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, mixed, mlp, tower


@pytest.mark.parametrize("hidden,top", [([6], [3]), ([6, 5], []), ([], [])])
@pytest.mark.parametrize("experts", [1, 3])
def test_mmoe(hidden: list[int], top: list[int], experts: int):
    config = MMoEHeads.Config(name="mmoe", experts=experts, hidden=hidden, tower=top)
    model = MMoEHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        outputs = [mlp(expert, sample) for expert in model.experts]
        inputs = [mixed(gate, sample, outputs) for gate in model.gates]
        rows.append(torch.cat([tower(model.towers, k, h) for k, h in enumerate(inputs)]))
    assert_equal(model, model(x), torch.stack(rows), [x])
