# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a training step that do not depend on the ranks or on a restart.

What is drawn for all tasks comes from a generator seeded by (seed, step), so every rank draws the
same. What is drawn for a vector of the boundary is a hash of (seed, step, sample, position in its
list, feature, column), so it is the same on whichever rank the sample lies.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltarec_kernels import splitmix
from deltarec_kernels.splitmix import mix64


class Draws(nn.Module):
    """Counts the steps, in a buffer that checkpoints save.

    Args:
        seed: of the job.
    """

    steps: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def next_key(self) -> int:
        """The next step's 64 bits."""
        key = mix64(torch.tensor(self.seed) ^ mix64(self.steps.cpu()))
        self.steps += 1
        return int(key)

    def next_generator(self) -> torch.Generator:
        """The next step's generator, on the CPU."""
        return torch.Generator().manual_seed(self.next_key())


@dataclass(frozen=True)
class Place:
    """Whose vectors a tensor of the boundary has, `[rows, columns]`."""

    features: dict[str, int]
    """Widths of the features that stand side by side in its columns."""
    index: Tensor
    """The samples' rows in the dataset, int64 `[B]`."""
    lengths: Tensor | None = None
    """How many rows each sample has, `[B]`; one if not given."""
    find_keys: Callable[[], Tensor] | None = None

    def keys(self) -> Tensor:
        """What tells the looked-up rows of all tables apart, int64 `[rows]`; -1 for none.

        For places of one feature, whose vectors are rows as they are.
        """
        assert self.find_keys is not None and len(self.features) == 1
        return self.find_keys()

    def uniform(self, key: int) -> Tensor:
        """A number in [0, 1) for each element, float64 `[rows, columns]`."""
        rows = mix64(self.index ^ key)
        if self.lengths is not None:
            lengths = self.lengths.long()
            starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
            positions = torch.arange(len(starts), device=rows.device) - starts
            rows = mix64(torch.repeat_interleave(rows, lengths) ^ mix64(positions))
        columns = torch.cat(
            [
                mix64(torch.arange(width, device=rows.device) + (zlib.crc32(name.encode()) << 24))
                for name, width in self.features.items()
            ]
        )
        return splitmix.uniform(mix64(rows.unsqueeze(1) ^ columns))


def uniform(shape: torch.Size, key: int, number: int, device: torch.device) -> Tensor:
    """A number in [0, 1) for each element of the parameter with that number, float64."""
    elements = torch.arange(shape.numel(), device=device) + (number << 40)
    return splitmix.uniform(mix64(mix64(elements) ^ key)).view(shape)
