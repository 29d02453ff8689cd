# SPDX-License-Identifier: Apache-2.0
"""Dropout whose mask is a hash of sample, layer and unit: the same on any number of processes.

    dropped = uniform(mix64(key of the sample ^ mix64(layer << 32 | unit))) < p
    y       = 0 where dropped, else x / (1 - p)

It is linear in x, so its gradient is the same operator on y's gradient, and no mask is kept.
"""

from typing import Any

import torch
from torch import Tensor

from deltarec_kernels.dropout import reference
from deltarec_kernels.registration import register


def dropout(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    """Zero units with probability p and scale the rest by 1 / (1 - p), differentiably.

    Args:
        x: `[n, …]`, of any floating-point type.
        keys: int64 `[n]`, one a sample.
        layer: number that tells this call's masks from others of the same keys.
        p: in [0, 1).
    """
    return _dropout(x, keys, layer, p)


def _fake(x: Tensor, keys: Tensor, layer: int, p: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_dropout = register(
    "dropout(Tensor x, Tensor keys, int layer, float p) -> Tensor",
    reference.dropout,
    _fake,
    "deltarec_kernels.dropout.triton",
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.layer, ctx.p = inputs[2], inputs[3]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    (keys,) = ctx.saved_tensors
    return _dropout(gradient, keys, ctx.layer, ctx.p), None, None, None


torch.library.register_autograd("deltarec::dropout", _backward, setup_context=_save)
