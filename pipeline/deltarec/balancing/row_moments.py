# SPDX-License-Identifier: Apache-2.0
"""What an adaptive method keeps of each row of the tables and task: one number, on one rank."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from deltarec.balancing.rows import TABLE, Rows
from deltarec.distributed import rank, world_size
from deltarec.embeddings.rows_of_ranks import rows_of_all_ranks


class RowMoments(nn.Module):
    """Running means of the squared norms of rows' gradients, which the ranks own in equal blocks.

    As with lazy Adam, a row that a task does not reach keeps its mean; the first gradient that
    reaches it sets the mean, so there is no bias to correct. The state is kept in CPU memory, whole
    on no rank, and any number of ranks can load it.

    Args:
        tables: their numbers of rows, in the order of the rows' keys.
        num_tasks: T.
        decay: of the means.
    """

    def __init__(self, tables: list[int], num_tasks: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.first = torch.tensor([0, *accumulate(tables)])[:-1]
        """Where each table's rows begin among all rows."""
        self.num_rows = sum(tables)
        self.block = -(-self.num_rows // world_size())
        here = range(self.num_rows)[rank() * self.block : (rank() + 1) * self.block]
        self.means = torch.zeros(len(here), num_tasks)

    def owners(self, keys: Tensor) -> Tensor:
        """The ranks of rows by their keys, int64 `[U]`."""
        return self._places(keys) // self.block

    def learn(self, rows: Rows) -> Tensor:
        """Of rows that this rank owns, with their gradients of the global batch: √v `[T, U]`."""
        places = self._places(rows.keys).cpu() - rank() * self.block
        before, now = self.means[places], rows.norms().T.square().float().cpu()
        decay = torch.where(before > 0, self.decay, 0.0)
        means = torch.where(now > 0, decay * before + (1 - decay) * now, before)
        self.means[places] = means
        return means.sqrt().T.to(rows.gradients)

    def _places(self, keys: Tensor) -> Tensor:
        return self.first.to(keys.device)[keys // TABLE] + keys % TABLE

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}means"] = rows_of_all_ranks(self.means, self.num_rows)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = state_dict.get(f"{prefix}means")
        if given is None:
            missing_keys.append(f"{prefix}means")
            return
        for shard in given.local_shards():
            self.means.copy_(shard.tensor)
