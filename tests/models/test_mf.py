# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.mf import MatrixFactorisation
from deltarec.models.roles import Fields, FieldShapes, Side

SIDE = Side(("user",), FieldShapes((3,), 0))


def score(bias: bool, query: list[float], item: list[float]) -> float:
    config = MatrixFactorisation.Config(name="mf", bias=bias)
    model = MatrixFactorisation(config, {"social": (SIDE, SIDE)})
    fields = [Fields([torch.tensor([row])], torch.empty(1, 0)) for row in (query, item)]
    return float((model.query("social", fields[0]) * model.item("social", fields[1])).sum())


def test_score_is_the_inner_product():
    assert score(False, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == 32.0


def test_the_last_column_of_an_item_is_its_bias():
    assert score(True, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == 14.0 + 6.0
