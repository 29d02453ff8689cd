# SPDX-License-Identifier: Apache-2.0
"""Rounding to codes, to the nearest or at random by counter: the arithmetic every kernel follows.

Random numbers are Philox4x32-10 (Salmon et al., 2011), a function of a key and a counter with no
state, so a number depends on what is rounded and on nothing else: not on ranks, cuts or restarts.
The key is the seed. One call of Philox serves eight neighbouring columns of one row:

    counter = (row mod 2^32, (row >> 32) << 16 | column // 8, step number, key of the table)

with row and column those of the whole table. Its four words are eight 16-bit halves h, the low half
first, one for each column, and u = (h + 1/2) / 2^16. Sixteen bits are enough: floor(x + u) is wrong
on average by less than 2^-17 of a code, which is the spacing of fp32 numbers at code 100, and they
halve the price of the randomness, the largest part of an update's arithmetic.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from deltarec_kernels.tables import Layout

ASSIGNMENT = 2**32 - 1
"""The step number under which a table's first values are rounded: no update has it."""

_MASK = 2**32 - 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10: four words in int64 tensors from a counter of four such."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32-bit product, by halves: int64 has no room for the whole."""
    upper = a * (b >> 16) + (a * (b & 0xFFFF) >> 16)
    return upper >> 16, (a * b) & _MASK


def uniform(seed: int, number: int, layout: "Layout", rows: Tensor) -> Tensor:
    """The random numbers of some rows at one step: float32 `[rows, dim]`, inside (0, 1).

    Args:
        seed: of the run.
        number: of the step.
        layout: of the table.
        rows: int64 `[rows]`, in this part of the table.
    """
    groups = torch.arange(-(-layout.dim // 8), device=rows.device) + layout.column_offset // 8
    row = (rows + layout.row_offset)[:, None].expand(-1, len(groups))
    counter = (
        row & _MASK,
        (row >> 32 << 16) | groups,
        torch.full_like(row, number & _MASK),
        torch.full_like(row, layout.key),
    )
    words = torch.stack(philox(counter, seed), 2)
    halves = torch.stack((words & 0xFFFF, words >> 16), 3).flatten(1)[:, : layout.dim]
    return halves.to(torch.float32) * 2**-16 + 2**-17


def bounds(bits: int) -> tuple[int, int]:
    """The lowest and the highest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def clip(scaled: Tensor, bits: int) -> Tensor:
    """To the range of codes; a NaN becomes the lowest, so that every kernel says the same."""
    low, high = bounds(bits)
    scaled = torch.where(scaled > low, scaled, low)
    return torch.where(scaled < high, scaled, high)


def quantise(weight: Tensor, step: Tensor, bits: int, uniform: Tensor | None) -> Tensor:
    """Codes, as whole float32 numbers of the weight's shape.

    Args:
        weight: float32.
        step: float32, broadcast to the weight.
        bits: 8, 4 or 2.
        uniform: inside (0, 1), of the weight's shape: rounds at random; without it to the nearest,
            ties to the even code.
    """
    scaled = clip(weight / step, bits)
    return torch.round(scaled) if uniform is None else torch.floor(scaled + uniform)
