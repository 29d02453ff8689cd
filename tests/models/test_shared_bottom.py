# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.shared_bottom import SharedBottomHeads
from tests.models.reference import assert_equal, leaf, linear, mlp


@pytest.mark.parametrize("hidden", [[], [6, 3]])
def test_shared_bottom(hidden: list[int]):
    config = SharedBottomHeads.Config(name="shared_bottom", hidden=hidden)
    model = SharedBottomHeads(config, 4, 3).double()
    x = leaf(5, 4)
    wanted = [
        [
            linear(logit, mlp(tower, sample))
            for tower, logit in zip(model.towers, model.logits, strict=True)
        ]
        for sample in x
    ]
    assert_equal(model, model(x), torch.stack([torch.cat(row) for row in wanted]), [x])
