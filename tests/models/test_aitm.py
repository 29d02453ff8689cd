# SPDX-License-Identifier: Apache-2.0
import math
from typing import Any

import torch
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.models.aitm import AITMHeads
from tests.models.reference import (
    CHAINED,
    assert_equal,
    check_chained_losses,
    leaf,
    linear,
    logistic,
    mlp,
    path,
)

NAMES = list(CHAINED)


def heads() -> AITMHeads:
    config = AITMHeads.Config(name="aitm", hidden=[6, 3], constraint_weight=0.6)
    model = AITMHeads(config, 4, CHAINED).double()
    for layer in (model.attention.query, model.attention.key, model.attention.value):
        torch.nn.init.normal_(layer.weight)  # as large as they become: the start is near 0
    return model


def test_columns():
    """Logits of the joint probabilities in the last columns, and in the first of their ratios."""
    model, x = heads(), leaf(5, 4)
    attention: Any = model.attention
    transfers: Any = model.transfers
    rows = []
    for sample in x:
        found: dict[str, Tensor] = {}
        for t, (name, task) in enumerate(CHAINED.items()):
            z = mlp(model.towers[t], sample)
            if task.given:
                both = [z, mlp(transfers[str(t)], found[task.given])]
                scores = []
                for u in both:
                    score = (attention.query.weight @ u) @ (attention.key.weight @ u)
                    scores.append((score / math.sqrt(3)).exp())
                z = sum(
                    s / sum(scores) * (attention.value.weight @ u)
                    for s, u in zip(scores, both, strict=True)
                )
            assert isinstance(z, Tensor)
            found[name] = z
        joint = [linear(model.logits[t], z) for t, z in enumerate(found.values())]
        ratios = []
        for t, task in enumerate(CHAINED.values()):
            ratio = joint[t]
            if task.given:
                chance = joint[t].sigmoid() / joint[NAMES.index(task.given)].sigmoid()
                ratio = torch.logit(chance.clamp(max=math.exp(-1e-6)))
            ratios.append(ratio)
        rows.append(torch.cat([*ratios, *joint]))
    assert_equal(model, model(x), torch.stack(rows), [x])


def test_losses():
    def loss(t: int, _: list[Tensor], row: Tensor, labels: dict[str, float], __: bool) -> Tensor:
        task = CHAINED[NAMES[t]]
        assert task.given
        joint = row[len(NAMES) :].sigmoid()
        happened = math.prod(labels[step] for step in path(NAMES[t]))
        excess = torch.clamp(joint[t] - joint[NAMES.index(task.given)], min=0)
        return logistic(joint[t], happened, task.positive_weight) + 0.6 * excess

    check_chained_losses(heads(), loss)


def test_conditional_logits_are_finite_where_the_constraint_is_broken():
    tasks = {"click": Task(), "buy": Task(given="click")}
    model = AITMHeads(AITMHeads.Config(name="aitm"), 4, tasks)
    values = torch.tensor([-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4])
    joint = torch.cartesian_prod(values, values).requires_grad_()
    conditional = model._conditional(joint)
    conditional.sum().backward()
    assert conditional.isfinite().all()
    assert joint.grad is not None and joint.grad.isfinite().all()
    click, product = joint[:, 0].sigmoid(), conditional.sigmoid().prod(dim=1)
    torch.testing.assert_close(product, torch.minimum(joint[:, 1].sigmoid(), click))
