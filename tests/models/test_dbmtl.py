# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.models.dbmtl import DBMTLHeads
from tests.models.reference import CHAINED, PARALLEL, assert_equal, leaf, linear, mixed, mlp

BY_GIVEN = {"click": [], "buy": ["click"], "time": [], "keep": ["buy"], "like": ["click"]}
TOLD = {"time": ["click", "buy"], "like": []}


def heads(tasks: dict[str, Task] = CHAINED, **options: Any) -> DBMTLHeads:
    config = DBMTLHeads.Config(name="dbmtl", hidden=[6], relation=[3], **options)
    return DBMTLHeads(config, 4, tasks).double()


@pytest.mark.parametrize("told", [{}, TOLD])
@pytest.mark.parametrize("experts", [0, 3])
def test_dbmtl(told: dict[str, list[str]], experts: int):
    model = heads(parents=told, experts=experts, expert=[5])
    x = leaf(5, 4)
    rows = []
    for sample in x:
        relations: dict[str, Tensor] = {}
        logits = []
        for t, name in enumerate(CHAINED):
            own = sample
            if model.experts is not None:
                own = mixed(model.gates[t], sample, [mlp(e, sample) for e in model.experts])
            found = mlp(model.own[t], own)
            parents = {**BY_GIVEN, **told}[name]
            if parents:
                below = torch.cat([found, *[relations[parent] for parent in parents]])
                found = mlp(model.relations[t], below)
            relations[name] = found
            logits.append(linear(model.logits[t], found))
        rows.append(torch.cat(logits))
    assert_equal(model, model(x), torch.stack(rows), [x])


@pytest.mark.parametrize(
    "tasks,parents,message",
    [
        (CHAINED, {"bye": ["click"]}, r"parents: no task is named \['bye'\]; have \['click', 'buy"),
        (CHAINED, {"buy": ["keep"]}, r"parents.buy: 'keep' is not a task declared before; those"),
        (PARALLEL, {}, r"none of \['like', 'share', 'save'\] has a parent; set model.heads.paren"),
    ],
)
def test_relations_that_cannot_be_are_refused(
    tasks: dict[str, Task], parents: dict[str, list[str]], message: str
):
    with pytest.raises(ValueError, match=message):
        heads(tasks, parents=parents)
