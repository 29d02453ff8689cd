# SPDX-License-Identifier: Apache-2.0
"""Dropout whose mask belongs to the sample, not to the process that draws it.

A mask from the process's own random stream would differ with the number of processes. Here it is a
hash of (seed, epoch, sample, layer, unit): `sample_keys` makes one key a sample, the model hands it
to its dropouts by `set_sample_keys` before each forward, and a layer mixes in its own number and
the unit's.
"""

import torch
from torch import Tensor, nn

from deltarec_kernels.dropout import dropout
from deltarec_kernels.splitmix import mix64, uniform


class Keyed(nn.Module):
    """What draws by sample: its keys, and its number among all that do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = 0
        self.keys: Tensor | None = None

    @property
    def known_keys(self) -> Tensor:
        """The keys, which somebody must have set."""
        assert self.keys is not None, "set_sample_keys comes before the forward"
        return self.keys

    def bits(self, x: Tensor) -> Tensor:
        """Random int64 numbers of the shape of x `[n, …]`, n being the number of keys."""
        units = torch.arange(x.shape[1:].numel(), device=x.device) + (self.layer << 32)
        return mix64(self.known_keys.unsqueeze(1) ^ mix64(units)).view(x.shape)


class Dropout(Keyed):
    """Zeroes units with probability `p` in training and scales the rest by 1 / (1 - p).

    Args:
        p: probability of a unit to be dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return dropout(x, self.known_keys, self.layer, self.p)


class RowDropout(Dropout):
    """Zeroes all of a row, with probability `p` in training; what stays is not scaled."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return torch.where(uniform(self.bits(x[:, :1])) < self.p, 0, x)


def set_sample_keys(model: nn.Module, keys: Tensor) -> None:
    """Give all that draws in a model the keys `[B]` of the batch that comes next."""
    for layer, module in enumerate(m for m in model.modules() if isinstance(m, Keyed)):
        module.keys, module.layer = keys, layer


def sample_keys(index: Tensor, seed: int, epoch: int) -> Tensor:
    """A random-looking int64 key for each sample: `[B]` to `[B]`."""
    return mix64(index + mix64(torch.tensor(seed * 1_000_003 + epoch, device=index.device)))
