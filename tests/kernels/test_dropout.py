# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarec_kernels.dropout import dropout, reference
from tests.kernels.test_lookup import compiled

SHAPES = st.sampled_from([(0, 4), (1, 1), (7, 33), (40, 600), (5, 3, 9)])
TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def random_input(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    keys = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=generator)
    return torch.randn(shape, generator=generator).to(dtype), keys


@compiled
@settings(max_examples=60, deadline=None)
@given(SHAPES, TYPES, st.integers(0, 2**20), st.floats(0, 0.99))
def test_compiled_is_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, layer: int, p: float
):
    x, keys = random_input(shape, dtype)
    x.requires_grad_()
    output = dropout(x, keys, layer, p)
    gradient, _ = random_input(shape, dtype)
    output.backward(gradient)
    assert torch.equal(output, reference.dropout(x.detach(), keys, layer, p))
    assert x.grad is not None
    assert torch.equal(x.grad, reference.dropout(gradient, keys, layer, p))


def test_gradients_of_gradients():
    x, keys = random_input((3, 5), torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, keys, 2, 0.4).square(), (x,))


def test_what_is_not_finite_is_dropped_too():
    x = torch.full((4, 50), torch.inf)
    output = dropout(x, random_input((4, 50))[1], 0, 0.5)
    assert ((output == 0) | output.isinf()).all()
    assert (output == 0).any() and output.isinf().any()


@compiled
def test_keys_are_one_a_sample():
    with pytest.raises(RuntimeError, match="keys for samples"):
        dropout(torch.ones(4, 2), torch.zeros(3, dtype=torch.int64), 0, 0.5)
