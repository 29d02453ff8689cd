# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.data.schema import Task
from deltarec.models.cross_stitch import CrossStitchHeads
from tests.models.reference import PARALLEL, assert_equal, leaf, mlp, tower


@pytest.mark.parametrize("hidden,top", [([6], []), ([6, 5], [3])])
def test_cross_stitch(hidden: list[int], top: list[int]):
    config = CrossStitchHeads.Config(name="cross_stitch", hidden=hidden, tower=top)
    model = CrossStitchHeads(config, 4, PARALLEL).double()
    x = leaf(5, 4)
    rows = []
    for sample in x:
        inputs = [sample] * 3
        layers: Any
        for layers, stitch in zip(model.layers, model.stitches, strict=True):
            outputs = [mlp(layer, inputs[j]) for j, layer in enumerate(layers)]
            inputs = [
                stitch[k, 0] * outputs[0] + stitch[k, 1] * outputs[1] + stitch[k, 2] * outputs[2]
                for k in range(3)
            ]
        rows.append(torch.cat([tower(model.towers, k, h) for k, h in enumerate(inputs)]))
    assert_equal(model, model(x), torch.stack(rows), [x])


@pytest.mark.parametrize("num_tasks,wanted", [(1, [[0.7]]), (2, [[0.7, 0.3], [0.3, 0.7]])])
def test_stitches_start_near_separate_networks(num_tasks: int, wanted: list[list[float]]):
    config = CrossStitchHeads.Config(name="cross_stitch", hidden=[6], own=0.7)
    model = CrossStitchHeads(config, 4, {str(t): Task() for t in range(num_tasks)})
    torch.testing.assert_close(model.stitches[0], torch.tensor(wanted), check_stride=False)
