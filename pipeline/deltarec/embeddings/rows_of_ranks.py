# SPDX-License-Identifier: Apache-2.0
"""State by rows that ranks divide among themselves, for checkpoints that any number can load."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torchrec.distributed.types import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata

from deltarec.distributed import rank, world_size


def rows_of_all_ranks(local: Tensor, num_rows: int) -> ShardedTensor:
    """A tensor whose rows the ranks have in equal blocks, one rank after the other.

    Args:
        local: CPU tensor `[rows, columns]`, this rank's block; the last ones may be shorter.
        num_rows: of all ranks.
    """
    block, columns = -(-num_rows // world_size()), local.shape[1]
    shards = [
        ShardMetadata([first, 0], [min(block, num_rows - first), columns], f"rank:{number}/cpu")
        for number, first in enumerate(range(0, num_rows, block))
    ]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(local, shards[rank()])] if len(local) else [],
        ShardedTensorMetadata(
            shards_metadata=shards,
            size=torch.Size([num_rows, columns]),
            tensor_properties=TensorProperties(dtype=local.dtype),
        ),
        process_group=dist.group.WORLD,
    )
