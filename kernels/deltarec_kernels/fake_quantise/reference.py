# SPDX-License-Identifier: Apache-2.0
"""Fake quantisation and its gradients in plain PyTorch."""

import torch
from torch import Tensor

from deltarec_kernels.rounding import bounds, clip, quantise


def fake_quantise(weight: Tensor, step: Tensor, bits: int, factor: float) -> Tensor:
    """`step * clip(round(weight / step))`, of the weight's shape; the factor is backward's."""
    steps = _by_column(step, weight)
    return quantise(weight, steps, bits, None) * steps


def fake_quantise_backward(
    gradient: Tensor, weight: Tensor, step: Tensor, bits: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Gradients to the weight (straight through, inside the range) and, scaled, to the step."""
    scaled = weight / _by_column(step, weight)
    products = gradient.double() * step_slope(scaled, bits).double()
    by_block = products.unflatten(1, (step.shape[1], -1)).sum(2).to(torch.float32)
    return torch.where(_inside(scaled, bits), gradient, 0), factor * by_block


def step_slope(scaled: Tensor, bits: int) -> Tensor:
    """LSQ's derivative of the fake-quantised value to the step, at weight / step."""
    clipped = clip(scaled, bits)
    return torch.where(_inside(scaled, bits), torch.round(clipped) - clipped, clipped)


def _inside(scaled: Tensor, bits: int) -> Tensor:
    low, high = bounds(bits)
    return (scaled > low) & (scaled < high)


def _by_column(step: Tensor, weight: Tensor) -> Tensor:
    return step.repeat_interleave(weight.shape[1] // step.shape[1], 1)
