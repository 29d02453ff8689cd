# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation over the global batch, on CPU and GPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm(nn.Module):
    """`BatchNorm1d` with the statistics of all ranks' samples; padding does not count.

    PyTorch's SyncBatchNorm does this on GPU only.

    Args:
        dim: width D of the input `[B, D]`.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
    """

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.momentum = momentum
        self.eps = eps
        self.real: Tensor | None = None
        """Bool `[B]`: which samples are not padding; set by `set_real_samples`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = self._batch_statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.real is not None, "set_real_samples comes before the forward"
        real = self.real.to(x.dtype).unsqueeze(1)
        sums = torch.cat([(x * real).sum(0), (x.square() * real).sum(0), real.sum(0)])
        if dist.get_world_size() > 1:
            sums = all_reduce(sums)
        dim = x.shape[1]
        count = sums[-1]
        mean = sums[:dim] / count
        var = sums[dim : 2 * dim] / count - mean.square()
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)  # pyright: ignore
            self.running_var.lerp_(unbiased, self.momentum)  # pyright: ignore
        return mean, var.clamp(min=0)


def set_real_samples(model: nn.Module, real: Tensor) -> None:
    """Tell every batch normalisation of a model which samples `[B]` of the next batch are real."""
    for module in model.modules():
        if isinstance(module, GlobalBatchNorm):
            module.real = real
