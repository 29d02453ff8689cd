# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation over the global batch, on CPU and GPU."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchStatistics(nn.Module):
    """A layer that, in training, normalises by statistics of the batch's real samples."""

    def __init__(self) -> None:
        super().__init__()
        self.real: Tensor | None = None
        """Bool `[B]`: which samples are not padding; set by `set_real_samples`."""

    @property
    def real_samples(self) -> Tensor:
        assert self.real is not None, "set_real_samples comes before the forward"
        return self.real


class GlobalBatchNorm(BatchStatistics):
    """`BatchNorm1d` with the statistics of all ranks' samples; padding does not count.

    PyTorch's SyncBatchNorm does this on GPU only.

    Args:
        dim: width D of the input `[B, D]`.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            centred, var = self._centre(x)
        else:
            centred, var = x - self.running_mean, self.running_var
        return torch.addcmul(self.bias, centred, torch.rsqrt(var + self.eps) * self.weight)

    def _centre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input less the batch's mean, `[B, D]`, and the batch's variance, `[D]`."""
        x = x.to(self.weight.dtype)  # under autocast the sums would have eight bits
        real = self.real_samples.to(x.dtype).unsqueeze(1)
        sums = _over_ranks(torch.cat([(x * real).sum(0), real.sum(0)]))
        samples = sums[-1]
        count = samples.clamp(min=1)
        mean = sums[:-1] / count
        centred = x - mean
        # Not E[x²] − mean², which cancels where the mean is large against the deviation.
        var = _over_ranks((centred.square() * real).sum(0)) / count
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            momentum = self.momentum * samples.clamp(max=1)  # a batch without samples tells nothing
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
        return centred, var


def _over_ranks(sums: Tensor) -> Tensor:
    return all_reduce(sums) if dist.get_world_size() > 1 else sums


def set_real_samples(model: nn.Module, real: Tensor) -> None:
    """Tell every batch normalisation of a model which samples `[B]` of the next batch are real."""
    for module in model.modules():
        if isinstance(module, BatchStatistics):
            module.real = real
