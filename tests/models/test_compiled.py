# SPDX-License-Identifier: Apache-2.0
"""`torch.compile` takes scenario modules; the graph breaks where blocks are laid out.

With the backend `aot_eager`: forward and backward are traced, which is where compilation can fail.
"""

import pytest
import torch
from torch import Tensor

from deltarec.config import validate
from deltarec.layers.batch_norm import set_real_samples
from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.models import SCENARIO_MODULES, TRUNKS
from tests.models.properties import randomise
from tests.models.reference import SHAPES, fields
from tests.models.test_every_combination import OPTIONS


@pytest.mark.parametrize("number", range(len(SCENARIO_MODULES)))
def test_compiled_is_the_same(one_process: torch.device, number: int):
    """Every module over one of the trunks, each trunk under two modules."""
    torch.manual_seed(0)
    name, trunk = list(SCENARIO_MODULES)[number], list(TRUNKS)[number % len(TRUNKS)]
    kind, below = SCENARIO_MODULES[name], TRUNKS[trunk]
    config = validate(kind.Config, {"name": name, **OPTIONS["scenario"][name]}, "test")
    trunk_config = validate(below.Config, {"name": trunk, "hidden": [6], "dropout": 0.2}, "test")
    model = kind(config, SHAPES, 3, lambda shapes: below(trunk_config, shapes)).double()
    randomise(model)
    compiled = torch.compile(model, backend="aot_eager")
    for scenario in ([2, 0, 0, 2, 0], [1, 1, 0, 2, 1, 1, 0]):
        samples = len(scenario)
        set_real_samples(model, torch.ones(samples, dtype=torch.bool))
        set_sample_keys(model, sample_keys(torch.arange(samples), 0, 0))
        inputs, leaves = fields(samples=samples)
        leaves += model.parameters()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        results: list[list[Tensor]] = []
        upstream = torch.randn(samples, model.output_dim, dtype=torch.float64)
        for function in (model, compiled):
            model.load_state_dict(state)
            y = function(inputs, torch.tensor(scenario))
            gradients = torch.autograd.grad(y, leaves, upstream, materialize_grads=True)
            results.append([y, *gradients])
        assert all(gradient.any() for gradient in results[0][1:5])
        torch.testing.assert_close(results[1], results[0])
