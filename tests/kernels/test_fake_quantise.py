# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarec_kernels import fake_quantise
from deltarec_kernels.fake_quantise import reference
from tests.kernels.test_lookup import compiled

SHAPES = st.tuples(
    st.integers(0, 40), st.sampled_from([(1, 1), (10, 1), (64, 1), (64, 8), (72, 3)])
)


def random_rows(
    rows: int, dim: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + dim + blocks)
    weight = torch.randn(rows, dim, generator=generator)
    step = torch.rand(rows, blocks, generator=generator) + 0.01
    return weight, step, torch.randn(rows, dim, generator=generator)


@compiled
@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([8, 4, 2]))
def test_compiled_is_the_reference(shape: tuple[int, tuple[int, int]], bits: int):
    weight, step, gradient = random_rows(shape[0], *shape[1])
    weight.requires_grad_()
    step.requires_grad_()
    output = fake_quantise(weight, step, bits, 0.3)
    output.backward(gradient)
    weight_gradient, step_gradient = reference.fake_quantise_backward(
        gradient, weight.detach(), step.detach(), bits, 0.3
    )
    torch.testing.assert_close(output, reference.fake_quantise(weight, step, bits, 0.3))
    assert torch.equal(weight.grad, weight_gradient)  # type: ignore[arg-type]
    torch.testing.assert_close(step.grad, step_gradient, rtol=1e-5, atol=1e-6)


def test_equations_by_hand():
    weight = torch.tensor([[0.6, -0.2, 3.0, -9.0]], requires_grad=True)
    step = torch.tensor([[0.5]], requires_grad=True)
    output = fake_quantise(weight, step, 2)  # codes -2 to 1; w / step = 1.2, -0.4, 6, -18
    assert output.tolist() == [[0.5, 0.0, 0.5, -1.0]]
    output.backward(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    assert weight.grad.tolist() == [[0, 10, 0, 0]]  # type: ignore[union-attr]
    assert step.grad.item() == pytest.approx(1 + 10 * 0.4 + 100 - 2000)  # type: ignore[union-attr]


def test_step_must_cut_the_rows():
    with pytest.raises(ValueError, match="does not cut"):
        fake_quantise(torch.ones(2, 8), torch.ones(2, 3), 8)
