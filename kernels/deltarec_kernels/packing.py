# SPDX-License-Identifier: Apache-2.0
"""Signed codes of 8, 4 or 2 bits in bytes, the first column in the lowest bits."""

import torch
from torch import Tensor


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of the codes of one row; the steps come on top: 4 for each column block."""
    return -(-dim * bits // 8)


def unpack(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Codes as float32 `[rows, dim]` from uint8 `[rows, bytes]`."""
    if bits == 8:
        return packed.view(torch.int8).to(torch.float32)
    shifts = torch.arange(0, 8, bits, device=packed.device)
    fields = (packed[:, :, None].to(torch.int32) >> shifts) & (2**bits - 1)
    codes = fields.flatten(1)[:, :dim]
    half = 2 ** (bits - 1)
    return ((codes ^ half) - half).to(torch.float32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 `[rows, bytes]` from codes of any type, `[rows, dim]`."""
    if bits == 8:
        return codes.to(torch.int8).view(torch.uint8)
    per_byte = 8 // bits
    padding = -codes.shape[1] % per_byte
    fields = torch.nn.functional.pad(codes.to(torch.int32) & (2**bits - 1), (0, padding))
    shifts = torch.arange(0, 8, bits, device=codes.device)
    return (fields.unflatten(1, (-1, per_byte)) << shifts).sum(2).to(torch.uint8)
