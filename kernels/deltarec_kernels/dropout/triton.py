# SPDX-License-Identifier: Apache-2.0
"""Dropout by hashes in Triton: one program for each row and block of its columns."""

# The options of a launch (num_warps) are no parameters of the kernel.
# pyright: reportCallIssue=false
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarec_kernels.splitmix.triton import mix

MOST_COLUMNS = 1024


@triton.jit
def _dropout_kernel(
    x,  # [rows, width], any floating-point type
    keys,  # int64 [rows]
    output,  # as x
    width,
    first_unit,  # int64, layer << 32
    threshold,  # int64, p in units of 2^-53
    kept,  # float32, 1 - p
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < width
    units = mix(columns.to(tl.int64) + first_unit)
    bits = mix((tl.load(keys + row).to(tl.uint64) ^ units).to(tl.int64))
    dropped = (bits >> 11).to(tl.int64) < threshold
    found = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    scaled = tl.where(dropped, 0.0, tl.div_rn(found, kept))
    tl.store(output + row * width + columns, scaled, mask=mask)


def dropout(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    """`torch.ops.deltarec.dropout` on CUDA."""
    x = x.contiguous()
    output = torch.empty_like(x)
    if x.numel():
        width = x.numel() // len(x)
        columns = min(triton.next_power_of_2(width), MOST_COLUMNS)
        _dropout_kernel[(len(x), triton.cdiv(width, columns))](
            x,
            keys.contiguous(),
            output,
            width,
            layer << 32,
            math.ceil(math.ldexp(p, 53)),
            1 - p,
            COLUMNS=columns,
            num_warps=4,
        )
    return output
