# SPDX-License-Identifier: Apache-2.0
"""A sub-graph around each batch, where the whole graph is too large to go through at every step.

As CIGF's released code does for IJCAI-Contest, after LADIES (Zou et al., 2019): a hop spreads from
the nodes found last over the union of all behaviours' graphs, and draws others in proportion to the
square of what reaches them. The nodes and the edges among them make the batch's graphs.

What is drawn is keyed by seed, epoch, the batch's place in it, hop and node, and starts from all
that the **global** batch names, so it is the same on any number of ranks and after a resume.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from deltarec.config import Config
from deltarec.data.batch import Batch, node_slices
from deltarec.data.schema import Schema
from deltarec.distributed import all_sum, rank, world_size
from deltarec_kernels.splitmix import mix64, uniform


class SubgraphConfig(Config):
    """Of sub-graphs by importance (as CIGF's code has them for IJCAI-Contest)."""

    nodes: int = Field(default=40_000, gt=0)
    """Users, and as many items, that each hop adds to the nodes that the batch names."""
    hops: int = Field(default=2, gt=0)
    """From those."""


class SubgraphSampler:
    """Draws the nodes that a batch is trained on.

    Args:
        config: how many, and how far away.
        schema: of the job.
        edges: of each behaviour, what `layers.graph.bipartite` gives: N nodes.
        seed: of the draws.
    """

    def __init__(
        self, config: SubgraphConfig, schema: Schema, edges: Sequence[Any], seed: int
    ) -> None:
        self.config = config
        self.schema = schema
        self.seed = seed
        self.union: Any = sum(edges[1:], edges[0])
        self.union.data = np.ones_like(self.union.data)
        self.degree = np.maximum(np.asarray(self.union.sum(1)).ravel(), 1)

    def draw(self, batch: Batch) -> Batch:
        """A batch on the nodes drawn for it; a collective."""
        named = torch.zeros(self.union.shape[0], dtype=torch.int32)
        for feature in self.schema.placed:
            node = batch.node(feature, self.schema)
            named[node[node >= 0]] = 1
        place = torch.tensor([self.seed, batch.epoch, batch.next.epoch, batch.next.samples])
        nodes = self.around((all_sum(named) > 0).nonzero().flatten(), place)
        slices = node_slices(self.schema, rank(), world_size(), nodes)
        return replace(batch, nodes=slices, subgraph=nodes)

    def around(self, seeds: Tensor, place: Tensor) -> Tensor:
        """The seeds, int64 `[s]`, and what is drawn around them: int64 `[n]`, ascending.

        Args:
            seeds: nodes.
            place: int64 numbers that key the draws.
        """
        key = torch.zeros((), dtype=torch.int64)
        for number in place:
            key = mix64(key ^ number)
        chosen = np.zeros(self.union.shape[0], dtype=bool)
        chosen[seeds.numpy()] = True
        frontier = seeds.numpy()
        users = self.schema.node_sizes[0]
        for hop in range(self.config.hops):
            reach = self._reach(frontier)
            reach[chosen] = 0.0
            sides = (slice(0, users), slice(users, None))
            found = [
                side.start + self._largest(reach[side], key + hop, side.start) for side in sides
            ]
            frontier = np.concatenate(found)
            chosen[frontier] = True
        return torch.from_numpy(np.flatnonzero(chosen))

    def _reach(self, nodes: np.ndarray) -> np.ndarray:
        """What a unit at each of some nodes gives its neighbours in equal parts: `[N]`."""
        start = np.zeros(self.union.shape[0])
        start[nodes] = 1 / self.degree[nodes]
        return self.union @ start  # it is symmetric

    def _largest(self, reach: np.ndarray, key: Tensor, first: int) -> np.ndarray:
        """Draw without replacement, in proportion to the square, `config.nodes` of a side.

        The least of -log(u) / weight are such a draw (Efraimidis and Spirakis, 2006).
        """
        [there] = reach.nonzero()
        bits = mix64(mix64(torch.from_numpy(there + first)) ^ mix64(key))
        waits = -np.log1p(-uniform(bits).numpy()) / reach[there] ** 2
        count = min(self.config.nodes, len(there))
        return there[np.argpartition(waits, count - 1)[:count]] if count else there
