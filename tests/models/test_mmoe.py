# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.mmoe import MMoEHeads
from tests.models.reference import assert_equal, leaf, linear, mlp


@pytest.mark.parametrize("hidden,tower", [([6], [3]), ([6, 5], []), ([], [])])
@pytest.mark.parametrize("experts", [1, 3])
def test_mmoe(hidden: list[int], tower: list[int], experts: int):
    config = MMoEHeads.Config(name="mmoe", experts=experts, hidden=hidden, tower=tower)
    model = MMoEHeads(config, 4, 2).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        logits = []
        for gate, top, logit in zip(model.gates, model.towers, model.logits, strict=True):
            scores = [score.exp() for score in linear(gate, sample)]
            outputs = [mlp(expert, sample) for expert in model.experts]
            mixed = torch.zeros_like(outputs[0])
            for score, output in zip(scores, outputs, strict=True):
                mixed = mixed + score / sum(scores) * output
            logits.append(linear(logit, mlp(top, mixed)))
        rows.append(torch.cat(logits))
    assert_equal(model, model(x), torch.stack(rows), [x])
