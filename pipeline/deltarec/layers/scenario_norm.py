# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with statistics and parameters of each scenario's own."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltarec.layers.batch_norm import BatchStatistics


class ScenarioNorm(BatchStatistics):
    """`γ_s (x − μ_s) / √(σ²_s + ε) + β_s` over the global batch's samples of each scenario s.

    In evaluation μ and σ² are running ones, so a sample's output is its own. Their average is of
    the exponentially weighted kind that counts the movement of the mean into the variance: a
    scenario with one sample a batch has no variance within batches, but has one over them.

    Args:
        dim: width D of the input `[B, D]`.
        num_scenarios: how many.
        shared: whether γ and β have a part that all scenarios share: `(γ γ_s)` and `(β + β_s)`,
            STAR's partitioned normalisation (Sheng et al., 2021, arXiv 2101.11427).
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        dim: int,
        num_scenarios: int,
        shared: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_scenarios, dim))
        self.bias = nn.Parameter(torch.zeros(num_scenarios, dim))
        self.shared_weight = nn.Parameter(torch.ones(dim)) if shared else None
        self.shared_bias = nn.Parameter(torch.zeros(dim)) if shared else None
        self.register_buffer("running_mean", torch.zeros(num_scenarios, dim))
        self.register_buffer("running_var", torch.ones(num_scenarios, dim))
        self.momentum = momentum
        self.eps = eps

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """`[B, D]` and scenarios `[B]` to `[B, D]`."""
        x = x.to(self.weight.dtype)  # under autocast the sums would have eight bits
        if self.training:
            x = self._by_batch(x, scenario)
        else:
            deviation = (self.running_var + self.eps).sqrt()
            x = (x - self.running_mean[scenario]) / deviation[scenario]
        weight = self.weight.index_select(0, scenario)
        bias = self.bias.index_select(0, scenario)
        if self.shared_weight is not None and self.shared_bias is not None:
            weight, bias = weight * self.shared_weight, bias + self.shared_bias
        return torch.addcmul(bias, x, weight)

    def _by_batch(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Normalised by the batch's statistics, which the running ones take in."""
        num_scenarios = len(self.weight)
        row = torch.where(self.real_samples, scenario, num_scenarios)  # padding is one of its own
        normalised, counts, mean, var = _Normalise.apply(x, row, num_scenarios + 1, self.eps)
        momentum = self.momentum * counts[:-1].clamp(max=1)
        step = mean[:-1] - self.running_mean
        self.running_mean.addcmul_(step, momentum)
        self.running_var.lerp_(var[:-1] + (1 - momentum) * step.square(), momentum)
        return normalised


class _Normalise(torch.autograd.Function):
    """Rows less their group's mean, by its deviation; moments are over all ranks.

    Autograd's own way through the moments takes three times the time: `[B, D]` passes are all
    that this layer does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, row: Tensor, num_rows: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`[B, D]` and groups `[B]` to `[B, D]`, counts `[G, 1]`, means and variances `[G, D]`."""
        counts = _over_ranks(_sums(x.new_ones(len(x), 1), row, num_rows))
        divisor = counts.clamp(min=1)
        mean = _over_ranks(_sums(x, row, num_rows)) / divisor
        centred = x - mean.index_select(0, row)
        # Not E[x²] − mean², which cancels where the mean is large against the deviation.
        var = _over_ranks(_sums(centred.square(), row, num_rows)) / divisor
        scale = torch.rsqrt(var + eps)
        normalised = centred.mul_(scale.index_select(0, row))
        ctx.save_for_backward(normalised, row, scale, divisor)
        ctx.mark_non_differentiable(counts, mean, var)
        return normalised, counts, mean, var

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        normalised, row, scale, divisor = ctx.saved_tensors
        pair = torch.stack(
            [_sums(upstream, row, len(scale)), _sums(upstream * normalised, row, len(scale))]
        )
        plain, along = _over_ranks(pair) / divisor
        gradient = upstream - plain.index_select(0, row)
        gradient.addcmul_(normalised, along.index_select(0, row), value=-1)
        return gradient.mul_(scale.index_select(0, row)), None, None, None


def _sums(x: Tensor, row: Tensor, num_rows: int) -> Tensor:
    return x.new_zeros(num_rows, x.shape[1]).index_add_(0, row, x)


def _over_ranks(sums: Tensor) -> Tensor:
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums
