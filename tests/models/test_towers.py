# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from deltarec.models.mlp import MLPTrunk
from deltarec.models.towers import ScenarioTowers
from tests.models.properties import check_properties
from tests.models.reference import SHAPES, assert_equal, fields, flat, mlp


def towers(**options: Any) -> ScenarioTowers:
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    config = ScenarioTowers.Config(name="towers", **options)
    return ScenarioTowers(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()


@pytest.mark.parametrize("hidden", [[4, 3], []])
@pytest.mark.parametrize("scenario", [[2, 0, 1, 2, 0], [2, 0, 0, 2, 0], [1, 1, 1, 1, 1]])
def test_each_sample_goes_through_its_scenarios_tower(hidden: list[int], scenario: list[int]):
    """Scenarios without samples in the batch have gradients, of zero: every rank needs all."""
    model = towers(hidden=hidden)
    inputs, leaves = fields()
    wanted = torch.stack(
        [
            mlp(model.towers.members[s], mlp(model.trunk.mlp, flat(inputs, i)))
            for i, s in enumerate(scenario)
        ]
    )
    got = model(inputs, torch.tensor(scenario))
    assert_equal(model, got, wanted, leaves)
    model(inputs, torch.tensor(scenario)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.output_dim == wanted.shape[1]


def test_properties(one_process: torch.device):
    """A tower of an absent scenario computes nothing, on no samples: see the test above."""
    check_properties(towers(hidden=[4]), reads_absent=True)


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match=r"model.scenario.norm: towers see one .*; use layer"):
        towers(hidden=[4], norm="batch")
