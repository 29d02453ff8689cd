# SPDX-License-Identifier: Apache-2.0
"""SplitMix64 (Steele et al., 2014) on int64 tensors."""

from torch import Tensor


def mix64(x: Tensor) -> Tensor:
    """A hash of each number, int64 of its shape; a bijection."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """To the right by `bits`, 1 to 63, filled with zeros."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
