# SPDX-License-Identifier: Apache-2.0
"""SplitMix64 (Steele et al., 2014): a hash that is a bijection, on int64 tensors."""

import torch
from torch import Tensor

from deltarec_kernels.registration import register
from deltarec_kernels.splitmix import reference
from deltarec_kernels.splitmix.reference import shifted, uniform

__all__ = ["mix64", "shifted", "uniform"]


def mix64(x: Tensor) -> Tensor:
    """A hash of each number, int64 of its shape."""
    return _mix64(x)


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_mix64 = register(
    "mix64(Tensor x) -> Tensor", reference.mix64, _fake, "deltarec_kernels.splitmix.triton"
)
