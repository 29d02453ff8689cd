# SPDX-License-Identifier: Apache-2.0
"""A ring of transitions: the newest ones take the places of the oldest."""

import torch
from torch import Tensor


class Replay:
    """Rows of numbers, each with whole-number keys, in the order in which they came.

    Args:
        capacity: rows that are kept.
        width: numbers of a row.
        num_keys: keys of a row.

    Attributes:
        size: rows that there are.
    """

    def __init__(self, capacity: int, width: int, num_keys: int) -> None:
        self.records = torch.zeros(capacity, width)
        self.keys = torch.zeros(capacity, num_keys, dtype=torch.int64)
        self._state = torch.zeros(2, dtype=torch.int64)
        """Rows that ever came; of them, those before this block."""

    @property
    def size(self) -> int:
        return min(int(self._state[0]), len(self.records))

    def append(self, records: Tensor, keys: Tensor) -> None:
        """Put rows `[n, width]` with their keys `[n, num_keys]` behind the others."""
        capacity, came = len(self.records), int(self._state[0])
        self._state[0] += len(records)
        came += max(0, len(records) - capacity)
        self._write(came, records[-capacity:], keys[-capacity:])

    def block(self) -> tuple[Tensor, Tensor]:
        """The rows that came since the last block's end and are still there, and their keys."""
        places = torch.arange(self._block_start, int(self._state[0])) % len(self.records)
        return self.records[places], self.keys[places]

    def write_block(self, records: Tensor, keys: Tensor) -> None:
        """Put rows into the places of `block`."""
        self._write(self._block_start, records, keys)

    def end_block(self) -> None:
        """What comes from now on is of another block."""
        self._state[1] = self._state[0]

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows drawn with replacement, and the ones that came after them; `[count, width]` each."""
        places = torch.randint(self.size, (count,), generator=generator)
        return self.records[places], self.records[(places + 1) % self.size]

    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        return {"records": self.records, "keys": self.keys, "state": self._state}

    @property
    def _block_start(self) -> int:
        came, before = self._state.tolist()
        return max(before, came - len(self.records))

    def _write(self, start: int, records: Tensor, keys: Tensor) -> None:
        places = torch.arange(start, start + len(records)) % len(self.records)
        self.records[places] = records
        self.keys[places] = keys
