# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.models.hybrid_experts import HybridExperts
from tests.models.reference import assert_equal, leaf, mlp


def test_hybrid_experts():
    config = HybridExperts.Config(name="hybrid_experts", hidden=[7, 3], shared=2, private=3)
    model = HybridExperts(config, {"item": 6, "user": 6}).double()
    inputs = {"item": leaf(5, 6), "user": leaf(2, 6)}
    wanted = []
    for table, vectors in inputs.items():
        for x in vectors:
            outputs = [mlp(e, x) for e in [*model.shared, *model.private[table]]]  # pyright: ignore
            scores = (model.gates[table].weight @ x).exp()  # pyright: ignore
            parts = [s / scores.sum() * o for s, o in zip(scores, outputs, strict=True)]
            wanted.append(torch.stack(parts).sum(0))
    got = torch.cat([model(table, vectors) for table, vectors in inputs.items()])
    assert_equal(model, got, torch.stack(wanted), list(inputs.values()))
    assert model.output_dim == 3


def test_tables_of_two_widths_cannot_share():
    config = HybridExperts.Config(name="hybrid_experts")
    with pytest.raises(ValueError, match="tables of one width, got item 6, user 4"):
        HybridExperts(config, {"item": 6, "user": 4})
