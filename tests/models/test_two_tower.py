# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.roles import Fields, FieldShapes, Side
from deltarec.models.two_tower import TwoTower

USER = Side(("user", "city"), FieldShapes((3, 2), 1))
FRIEND = Side(("user",), FieldShapes((3,), 0))
ITEM = Side(("item",), FieldShapes((4,), 0))
SIDES = {"listen": (USER, ITEM), "social": (FRIEND, FRIEND), "along": (ITEM, ITEM)}


def model(**options: object) -> TwoTower:
    torch.manual_seed(0)
    config = TwoTower.Config.model_validate(
        {"name": "two_tower", "hidden": [5], "dim": 6} | options
    )
    return TwoTower(config, SIDES)


def fields(side: Side) -> Fields:
    return Fields(
        [torch.randn(7, dim) for dim in side.shapes.dims], torch.randn(7, side.shapes.num_dense)
    )


def test_a_tower_is_an_mlp_over_its_sides_features():
    towers, inputs = model(), fields(USER)
    first, last = towers.towers["tower0"][0][0], towers.towers["tower0"][1]  # pyright: ignore
    x = torch.cat([*inputs.vectors, inputs.dense], dim=1)
    expected = (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
    torch.testing.assert_close(towers.query("listen", inputs), expected)


def test_sides_of_the_same_tables_share_a_tower():
    towers, item, friend = model(), fields(ITEM), fields(FRIEND)
    assert len(towers.towers) == 3
    assert torch.equal(towers.item("listen", item), towers.query("along", item))
    assert torch.equal(towers.item("social", friend), towers.query("social", friend))
    parameters = {task: len(towers.reached(task)) for task in SIDES}
    assert parameters == {"listen": 8, "social": 4, "along": 4}


def test_cosine_scores_are_bounded_by_the_temperature():
    towers, inputs = model(cosine=True, temperature=0.25), fields(ITEM)
    vectors = towers.item("listen", inputs)
    assert (vectors * vectors).sum(1).tolist() == pytest.approx([4.0] * 7, rel=1e-5)
