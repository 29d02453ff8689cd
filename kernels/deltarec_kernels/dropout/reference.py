# SPDX-License-Identifier: Apache-2.0
"""Dropout by hashes in plain PyTorch."""

import torch
from torch import Tensor

from deltarec_kernels.splitmix import reference


def dropout(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    """The mask by hashes, and `torch.where`."""
    units = torch.arange(x.shape[1:].numel(), device=x.device) + (layer << 32)
    bits = reference.mix64(keys.unsqueeze(1) ^ reference.mix64(units)).view(x.shape)
    return torch.where(reference.uniform(bits) < p, 0, x / (1 - p))
