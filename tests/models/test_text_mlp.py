# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.text_mlp import TextMLP
from tests.models.reference import assert_equal, leaf, linear, mlp


@pytest.mark.parametrize("hidden", [[7, 5], []])
def test_text_mlp(hidden: list[int]):
    config = TextMLP.Config(name="mlp", hidden=hidden, dim=3)
    model = TextMLP(config, {"item": 6, "user": 4}).double()
    inputs = {"item": leaf(5, 6), "user": leaf(2, 4)}
    wanted = [
        linear(model.projections[table], mlp(model.hidden[table], x))
        for table, vectors in inputs.items()
        for x in vectors
    ]
    got = torch.cat([model(table, vectors) for table, vectors in inputs.items()])
    assert_equal(model, got, torch.stack(wanted), list(inputs.values()))
    assert model.output_dim == 3 and model("item", inputs["item"][:0]).shape == (0, 3)
