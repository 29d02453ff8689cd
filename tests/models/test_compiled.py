# SPDX-License-Identifier: Apache-2.0
"""`torch.compile` takes scenario modules; the graph breaks where blocks are laid out.

With the backend `eager`: what is compiled is traced, which is where compilation can fail.
"""

import pytest
import torch
from torch import Tensor

from deltarec.config import validate
from deltarec.layers.batch_norm import set_real_samples
from deltarec.models import SCENARIO_MODULES
from deltarec.models.mlp import MLPTrunk
from tests.models.reference import SHAPES, fields
from tests.models.test_every_combination import OPTIONS


@pytest.mark.parametrize("name", SCENARIO_MODULES)
def test_compiled_is_the_same(one_process: torch.device, name: str):
    torch.manual_seed(0)
    kind = SCENARIO_MODULES[name]
    options = {"name": name, **OPTIONS["scenario"][name]}
    options.pop("dropout", None)
    config = validate(kind.Config, options, "test")
    trunk = MLPTrunk.Config(name="mlp", hidden=[6])
    model = kind(config, SHAPES, 3, lambda shapes: MLPTrunk(trunk, shapes)).double()
    compiled = torch.compile(model, backend="eager")
    for scenario in ([2, 0, 0, 2, 0], [1, 1, 0, 2, 1, 1, 0]):
        set_real_samples(model, torch.ones(len(scenario), dtype=torch.bool))
        inputs, leaves = fields(samples=len(scenario))
        state = {key: value.clone() for key, value in model.state_dict().items()}
        results: list[list[Tensor]] = []
        for function in (model, compiled):
            model.load_state_dict(state)
            y = function(inputs, torch.tensor(scenario))
            gradients = torch.autograd.grad(y.sum(), leaves, materialize_grads=True)
            results.append([y, *gradients])
        torch.testing.assert_close(results[1], results[0])
