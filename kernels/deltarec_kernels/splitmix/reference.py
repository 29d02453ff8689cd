# SPDX-License-Identifier: Apache-2.0
"""SplitMix64 in plain PyTorch."""

from torch import Tensor


def mix64(x: Tensor) -> Tensor:
    """The hash of each number of x, int64 of its shape."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """To the right by `bits`, 1 to 63, filled with zeros."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def uniform(bits: Tensor) -> Tensor:
    """Random int64 numbers to float64 ones in [0, 1)."""
    return (bits >> 11).bitwise_and_(2**53 - 1).double().mul_(2**-53)
