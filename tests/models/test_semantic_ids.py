# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.models.semantic_ids import SemanticIds
from tests.models.reference import assert_equal


def test_semantic_ids():
    config = SemanticIds.Config(name="semantic_ids", size=4, dim=3)
    model = SemanticIds(config, {"item": 2, "user": 3}).double()
    codes = {"item": [[1, 4], [4, 1], [0, 0]], "user": [[2, 2, 3]]}
    wanted = []
    for table, rows in codes.items():
        weight = model.vectors[table].weight.view(-1, 5, 3)  # pyright: ignore
        for row in rows:
            parts = [weight[level, code] for level, code in enumerate(row)]  # pyright: ignore
            wanted.append(torch.stack(parts).sum(0) / len(row))
    got = torch.cat(
        [model(t, torch.tensor(rows, dtype=torch.float64)) for t, rows in codes.items()]
    )
    assert_equal(model, got, torch.stack(wanted), [])
    assert model("item", torch.empty(0, 2)).shape == (0, 3)
