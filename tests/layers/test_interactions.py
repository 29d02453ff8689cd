# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.layers.interactions import CrossLayers, factorisation
from tests.models.reference import assert_equal, linear


@pytest.mark.parametrize("num_fields", [1, 2, 5])
def test_factorisation_is_the_sum_over_pairs(num_fields: int):
    fields = torch.randn(3, num_fields, 4, dtype=torch.float64)
    wanted = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for f in range(num_fields):
            for g in range(f + 1, num_fields):
                wanted[b] += fields[b, f] * fields[b, g]
    torch.testing.assert_close(factorisation(fields), wanted)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_crosses(rank: int | None, num_layers: int):
    model = CrossLayers(6, num_layers, rank).double()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert_equal(model, model(x), torch.stack([crossed(model, sample) for sample in x]), [x])


def crossed(model: CrossLayers, sample: torch.Tensor) -> torch.Tensor:
    """x_{l+1} = x_0 ∘ (W_l x_l + b_l) + x_l for one sample `[D]`."""
    x = sample
    for layer in model.layers:
        if isinstance(layer, torch.nn.Linear):
            product = linear(layer, x)
        else:
            down, up = layer  # pyright: ignore[reportGeneralTypeIssues]
            product = up.weight @ (down.weight @ x) + up.bias
        x = sample * product + x
    return x
