# SPDX-License-Identifier: Apache-2.0
"""Plain mathematics of one sample, with a module's own weights; and how results are compared."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltarec.models.roles import Fields, FieldShapes

SHAPES = FieldShapes(dims=(4, 4, 4), num_dense=2)


def fields(shapes: FieldShapes = SHAPES, samples: int = 5) -> tuple[Fields, list[Tensor]]:
    """Random inputs of a trunk, float64, and the same tensors as a list of leaves."""
    vectors = [leaf(samples, dim) for dim in shapes.dims]
    dense = leaf(samples, shapes.num_dense)
    return Fields(vectors, dense), [*vectors, dense]


def flat(inputs: Fields, sample: int) -> Tensor:
    """All inputs of one sample side by side."""
    return torch.cat([*[vector[sample] for vector in inputs.vectors], inputs.dense[sample]])


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def linear(layer: Any, x: Tensor) -> Tensor:
    """W x + b of one sample `[D]`."""
    return layer.weight @ x + layer.bias


def mlp(model: Any, x: Tensor) -> Tensor:
    """One sample `[D]` through linear layers and ReLUs."""
    for layer in model:
        x = linear(layer, x) if isinstance(layer, nn.Linear) else x * (x > 0)
    return x


def assert_equal(model: nn.Module, got: Tensor, wanted: Tensor, inputs: Sequence[Tensor]) -> None:
    """Outputs, and gradients of all parameters and inputs for random upstream gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert got.shape == wanted.shape
    upstream = torch.randn_like(got)
    leaves = dict(model.named_parameters()) | {f"input {i}": x for i, x in enumerate(inputs)}
    mine, theirs = (
        torch.autograd.grad(output, list(leaves.values()), upstream, materialize_grads=True)
        for output in (got, wanted)
    )
    for name, first, second in zip(leaves, mine, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9, msg=name)
