# SPDX-License-Identifier: Apache-2.0
"""The second pass of ALPT, which learns the steps of quantised tables (Li et al., 2023).

The first pass is an ordinary training step, after which the tables hold the updated rows rounded to
the nearest codes, and the dense parameters are new. The second one runs the same batch again, by
the tables and parameters as they are now, and its backward reaches the steps alone: fp32 tables,
dense parameters and the statistics of batch normalisation stay as the first pass left them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from deltarec.data.batch import Batch
from deltarec.embeddings.quantised_collections import quantised_tables


class SecondPass:
    """Runs after each training step.

    Args:
        model: a sharded `RankingModel`, some of whose tables learn their steps in two passes.
    """

    def __init__(self, model: DistributedModelParallel) -> None:
        self.model: Any = model.module
        self.collections = quantised_tables(model)
        for collection in self.collections:
            collection.keeps_input = True

    def __call__(self, batch: Batch) -> None:
        """Learn from the batch that was trained last, on this rank's device."""
        with buffers_kept(self.model):
            outputs = [collection.look_up_again() for collection in self.collections]
            logits = self.model.network(batch, outputs)
            losses = self.model.balancer.again(self.model.losses(logits, batch))
            # Only to these: whatever else has a gradient keeps it as it is.
            anchors = [a for collection in self.collections for a in collection.anchors()]
            torch.autograd.backward(losses.sum(), inputs=anchors)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """What a forward in here leaves in buffers, as statistics of batches, is forgotten."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
