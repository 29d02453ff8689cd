# SPDX-License-Identifier: Apache-2.0
"""Fake quantisation in Triton: one program for each row and column block."""

# The options of a launch (num_warps) are no parameters of the kernel.
# pyright: reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarec_kernels.triton_rows import clip, inside, round_even, step_slope, sum_of_products


@triton.jit
def _forward_kernel(
    weight,  # float32 [rows * blocks, block]
    step,  # float32 [rows * blocks]
    output,  # float32 [rows * blocks, block]
    block,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    mask = columns < block
    own = tl.load(step + at)
    scaled = tl.div_rn(tl.load(weight + at * block + columns, mask=mask, other=0.0), own)
    tl.store(output + at * block + columns, round_even(clip(scaled, BITS)) * own, mask=mask)


@triton.jit
def _backward_kernel(
    gradient,  # float32 [rows * blocks, block]
    weight,  # float32 [rows * blocks, block]
    step,  # float32 [rows * blocks]
    weight_gradient,  # float32 [rows * blocks, block]
    step_gradient,  # float32 [rows * blocks]
    block,
    factor,
    BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    mask = columns < block
    g = tl.load(gradient + at * block + columns, mask=mask, other=0.0)
    w = tl.load(weight + at * block + columns, mask=mask, other=0.0)
    scaled = tl.div_rn(w, tl.load(step + at))
    straight = tl.where(inside(scaled, BITS), g, 0.0)
    tl.store(weight_gradient + at * block + columns, straight, mask=mask)
    tl.store(step_gradient + at, factor * sum_of_products(g, step_slope(scaled, BITS)))


def fake_quantise(weight: Tensor, step: Tensor, bits: int, factor: float) -> Tensor:
    """`torch.ops.deltarec.fake_quantise` on CUDA; the factor is backward's."""
    weight, step = weight.contiguous(), step.contiguous()
    output = torch.empty_like(weight)
    if step.numel():
        block = weight.shape[1] // step.shape[1]
        _forward_kernel[(step.numel(),)](
            weight,
            step,
            output,
            block,
            BITS=bits,
            COLUMNS=triton.next_power_of_2(block),
            num_warps=1,
            enable_fp_fusion=False,
        )
    return output


def fake_quantise_backward(
    gradient: Tensor, weight: Tensor, step: Tensor, bits: int, factor: float
) -> tuple[Tensor, Tensor]:
    """`torch.ops.deltarec.fake_quantise_backward` on CUDA."""
    weight, step = weight.contiguous(), step.contiguous()
    weight_gradient, step_gradient = torch.empty_like(weight), torch.empty_like(step)
    if step.numel():
        block = weight.shape[1] // step.shape[1]
        _backward_kernel[(step.numel(),)](
            gradient.contiguous(),
            weight,
            step,
            weight_gradient,
            step_gradient,
            block,
            factor,
            BITS=bits,
            COLUMNS=triton.next_power_of_2(block),
            num_warps=1,
            enable_fp_fusion=False,
        )
    return weight_gradient, step_gradient
