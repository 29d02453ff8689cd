# SPDX-License-Identifier: Apache-2.0
import math

import torch
from torch import Tensor

from deltarec.models.esmm import ESMMHeads
from tests.models.reference import (
    CHAINED,
    assert_equal,
    check_chained_losses,
    leaf,
    logistic,
    path,
    tower,
)


def heads() -> ESMMHeads:
    return ESMMHeads(ESMMHeads.Config(name="esmm", hidden=[6, 3]), 4, CHAINED).double()


def test_logits():
    model, x = heads(), leaf(5, 4)
    wanted = [torch.cat([tower(model.towers, k, s) for k in range(len(CHAINED))]) for s in x]
    assert_equal(model, model(x), torch.stack(wanted), [x])


def test_losses():
    """Each conditional task by the product of probabilities down to it, over all samples."""
    names = list(CHAINED)

    def joint(t: int, chances: list[Tensor], _: Tensor, labels: dict[str, float], __: bool):
        steps = path(names[t])
        product = torch.stack([chances[names.index(step)] for step in steps]).prod()
        happened = math.prod(labels[step] for step in steps)
        return logistic(product, happened, CHAINED[names[t]].positive_weight)

    check_chained_losses(heads(), joint)
