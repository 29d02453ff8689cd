# SPDX-License-Identifier: Apache-2.0
"""SplitMix64 in Triton: one program for each block of numbers."""

# The options of a launch (num_warps) are no parameters of the kernel.
# pyright: reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def mix(x):
    """Of int64 numbers."""
    x = x.to(tl.uint64) + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _mix_kernel(
    numbers,  # int64 [count]
    hashes,  # int64 [count]
    count,
    COLUMNS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    mask = at < count
    found = mix(tl.load(numbers + at, mask=mask, other=0))
    tl.store(hashes + at, found.to(tl.int64), mask=mask)


def mix64(x: Tensor) -> Tensor:
    """`torch.ops.deltarec.mix64` on CUDA."""
    x = x.contiguous()
    output = torch.empty_like(x)
    if x.numel():
        _mix_kernel[(triton.cdiv(x.numel(), BLOCK),)](
            x, output, x.numel(), COLUMNS=BLOCK, num_warps=4
        )
    return output
