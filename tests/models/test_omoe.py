# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.omoe import OMoEHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, mixed, mlp, tower


def test_omoe():
    config = OMoEHeads.Config(name="omoe", experts=3, hidden=[6, 5], tower=[3])
    model = OMoEHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        h = mixed(model.gate, sample, [mlp(expert, sample) for expert in model.experts])
        rows.append(torch.cat([tower(model.towers, k, h) for k in range(3)]))
    assert_equal(model, model(x), torch.stack(rows), [x])
