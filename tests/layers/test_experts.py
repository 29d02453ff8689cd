# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts."""

import pytest
import torch

from deltarec.layers.experts import mixture


@pytest.mark.parametrize("width", [8, 64, 128])
def test_a_mixture_is_the_sum_of_weighted_experts(width: int):
    weights = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    experts = torch.randn(5, 4, width, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, width, dtype=torch.float64)

    found = mixture(weights, experts)
    wanted = torch.einsum("be,beh->bh", weights, experts)
    torch.testing.assert_close(found, wanted)

    parts = weights, experts
    torch.testing.assert_close(
        torch.autograd.grad(found, parts, upstream), torch.autograd.grad(wanted, parts, upstream)
    )


def test_a_mixture_under_autocast_has_the_dtype_of_the_experts():
    with torch.autocast("cpu", torch.bfloat16):
        for width in (8, 128):
            mixed = mixture(torch.rand(5, 4), torch.randn(5, 4, width, dtype=torch.bfloat16))
            assert mixed.dtype == torch.bfloat16
