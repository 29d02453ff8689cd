# SPDX-License-Identifier: Apache-2.0
"""Deterministic fake quantisation of fp32 rows with a learned step: LSQ (Esser et al., 2020).

    w_bar      = step * clip(round(w / step), L, H)
    dw_bar/dw    = 1 where L < w / step < H, else 0      (straight through)
    dw_bar/dstep = round(s) - s inside the range, the bound outside, with s = w / step

This is the quantiser of ALPT's second forward. There the fused kernels need no copy of it: the
fake-quantised rows are exactly the table with deterministic codes, see `deltarec_kernels.update`.
By itself it makes quantisation-aware training of an fp32 table.
"""

from typing import Any

import torch
from torch import Tensor

from deltarec_kernels.fake_quantise import reference
from deltarec_kernels.registration import register


def fake_quantise(weight: Tensor, step: Tensor, bits: int, gradient_factor: float = 1.0) -> Tensor:
    """Round fp32 rows to what `bits` bits hold, differentiably.

    Args:
        weight: float32 `[rows, dim]`.
        step: float32 `[rows, blocks]`, positive.
        bits: 8, 4 or 2.
        gradient_factor: multiplies the gradient to the step.

    Returns:
        float32 `[rows, dim]`.

    Raises:
        ValueError: the step's columns do not divide the weight's.
    """
    if weight.shape[1] % step.shape[1] or len(weight) != len(step):
        raise ValueError(
            f"step: shape {tuple(step.shape)} does not cut rows of {tuple(weight.shape)}"
        )
    return _fake_quantise(weight, step, bits, gradient_factor)


def _fake(weight: Tensor, step: Tensor, bits: int, factor: float) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _fake_backward(
    gradient: Tensor, weight: Tensor, step: Tensor, bits: int, factor: float
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(weight, memory_format=contiguous),
        torch.empty_like(step, memory_format=contiguous),
    )


_fake_quantise = register(
    "fake_quantise(Tensor weight, Tensor step, int bits, float factor) -> Tensor",
    reference.fake_quantise,
    _fake,
    "deltarec_kernels.fake_quantise.triton",
)
_backward_operator = register(
    "fake_quantise_backward(Tensor gradient, Tensor weight, Tensor step, int bits, float factor) "
    "-> (Tensor, Tensor)",
    reference.fake_quantise_backward,
    _fake_backward,
    "deltarec_kernels.fake_quantise.triton",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.bits, ctx.factor = inputs[2], inputs[3]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    weight, step = ctx.saved_tensors
    return (*_backward_operator(gradient, weight, step, ctx.bits, ctx.factor), None, None)


torch.library.register_autograd("deltarec::fake_quantise", _backward, setup_context=_save)
