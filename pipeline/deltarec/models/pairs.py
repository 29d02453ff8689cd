# SPDX-License-Identifier: Apache-2.0
"""The network of pairwise tasks: each sample's query against its item and the negatives drawn.

Rendle et al., 2009, BPR: the loss of a sample is -log sigmoid(score of its item - score of a
negative), the mean over its negatives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.balancing.gradients import reached_by_one_task
from deltarec.config import Config
from deltarec.data.batch import Batch, node_slices
from deltarec.data.schema import Schema
from deltarec.distributed import gather_rows, rank, world_size
from deltarec.embeddings.collections import EmbeddingTables, embedded, fake_quantisers
from deltarec.embeddings.tables import TableSpec
from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.layers.graph import Adjacency, BehaviourGraphs
from deltarec.layers.rows import seeing
from deltarec.models import GRAPH_ENCODERS, PAIR_MODELS, TASK_HEADS
from deltarec.models.losses import LossTerm
from deltarec.models.roles import Fields, FieldShapes, GraphConfig, PairConfig, Side


class PairNetwork(nn.Module):
    """Everything right of the tables, of a job of pairwise tasks.

    Args:
        config: the pair model's.
        schema: features and tasks.
        tables: for the widths of the fields.
        seed: of the dropout masks.
        bf16: whether to compute in bfloat16 where autocast allows it; a graph's encoder is not.
        graph: of the graph encoder, if there is one.
        heads: of the task heads, if the pair model has some.
    """

    def __init__(
        self,
        config: PairConfig,
        schema: Schema,
        tables: Mapping[str, TableSpec],
        seed: int,
        bf16: bool = False,
        graph: GraphConfig | None = None,
        heads: Config | None = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.seed = seed
        self.bf16 = bf16
        self.l2 = config.l2
        self.fake_quantisers = fake_quantisers(tables)
        self.encoder = None
        behaviours, width = (), 0
        if graph is not None:
            dim = tables[schema.table(schema.nodes[0])].dim
            behaviours = tuple(graph.behaviours)
            self.encoder = GRAPH_ENCODERS[graph.name](graph, dim, len(behaviours))
            width = len(behaviours) * self.encoder.output_dim
        self.hidden = None
        if graph is not None and graph.hide_targets:
            self.hidden = [graph.user, *graph.behaviours]
        self.graphs: BehaviourGraphs | None = None
        """Made of the data: to be set before the first batch."""
        self._encoded: Tensor | None = None

        def side(features: list[str]) -> Side:
            sparse = tuple(name for name in features if name in schema.sparse)
            used = tuple(schema.table(name) for name in sparse)
            dims = tuple(
                width if name in schema.placed else tables[table].dim
                for name, table in zip(sparse, used, strict=True)
            )
            shapes = FieldShapes(dims, len(features) - len(sparse), sparse)
            return Side(used, shapes, behaviours if sparse[0] in schema.placed else ())

        sides = {name: (side(task.query), side(task.item)) for name, task in schema.tasks.items()}
        self.pair = PAIR_MODELS[config.name](config, sides)
        if self.pair.heads_dim:
            make = TASK_HEADS[heads.name]  # pyright: ignore
            self.pair.heads = make(heads, self.pair.heads_dim, schema.tasks)

    def forward(self, batch: Batch, outputs: list) -> Tensor:
        """From a batch and the outputs of its tables to columns `[B, C]`.

        They are the scores of the samples' items `[B, T]`; then, for each task, those of its
        negatives; then the tasks' penalties `[B, T]`.
        """
        found = self._look_up(batch, outputs)
        scores, negatives, penalties = [], [], []
        for t, (name, task) in enumerate(self.schema.tasks.items()):
            drawn = [n for n, f in self.schema.drawn.items() if f.task == name]
            features = [task.query, [task.item[0]], *([feature] for feature in drawn)]
            # In training, of the task's own samples alone: tasks mostly share none.
            rows = found.rows[batch.mask[:, t]] if self.training else found.rows
            vectors = {n: found.vectors(n, rows) for side in features for n in side}
            query, *items = (
                self._tower(
                    partial(
                        self.pair.item if n else self.pair.query, name, self._take(vectors, names)
                    ),
                    rows,
                    (t, n),
                )
                for n, names in enumerate(features)
            )
            columns = [
                self._tower(partial(self.pair.score, name, query, item), rows, (t, n))
                for n, item in enumerate(items)
            ]
            columns.append(self._penalty(found, vectors, rows))
            score, *others, penalty = (
                column.new_zeros(len(batch.index)).index_copy(0, rows, column) for column in columns
            )
            scores.append(score)
            negatives += others
            penalties.append(penalty)
        return cast(Tensor, _Columns.apply(*scores, *negatives, *penalties))

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        """The terms of the tasks' losses; arguments as in `TaskHeads.losses`."""
        num_tasks = len(self.schema.tasks)
        scores, *negatives = columns.split(
            [num_tasks, *(task.negatives for task in self.schema.tasks.values()), num_tasks], dim=1
        )
        penalties = negatives.pop()
        terms = []
        for t, negative in enumerate(negatives):
            value = F.softplus(negative - scores[:, t : t + 1]).mean(1)
            terms.append(LossTerm(t, value + self.l2 * penalties[:, t], mask[:, t]))
        return terms

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that one task alone reaches."""
        if self.pair.heads_dim:
            return reached_by_one_task(
                self.pair.heads, len(self.schema.tasks), self.pair.heads_dim
            )[0]
        tasks = [{id(p) for p in self.pair.reached(task)} for task in self.schema.tasks]
        return [p for p in self.pair.parameters() if sum(id(p) in task for task in tasks) < 2]

    def query(self, task: str, batch: Batch, outputs: list) -> Tensor:
        """The vectors of the batch's queries of a task, `[B, D]`."""
        return self.pair.query(task, self._side(self.schema.tasks[task].query, batch, outputs))

    def item(self, task: str, batch: Batch, outputs: list) -> Tensor:
        """The vectors of the batch's items of a task, `[B, D]`."""
        return self.pair.item(task, self._side(self.schema.tasks[task].item, batch, outputs))

    @contextmanager
    def encoded_graph(self, tables: EmbeddingTables, device: torch.device) -> Iterator[None]:
        """Within it, a graph is encoded once and not for each batch; a collective.

        For evaluations: the weights must not change, and batches need no nodes.
        """
        slices = node_slices(self.schema, rank(), world_size())
        if slices is not None:
            assert tables.nodes is not None
            found: Any = tables.nodes(slices.to(device))
            assert self.graphs is not None
            self._encoded = self._encode(self._all_nodes(found.to_dict()), self.graphs.whole)
        try:
            yield
        finally:
            self._encoded = None

    def _side(self, features: list[str], batch: Batch, outputs: list) -> Fields:
        found = self._look_up(batch, outputs)
        return self._take({name: found.vectors(name, found.rows) for name in features}, features)

    def _look_up(self, batch: Batch, outputs: list) -> "_Found":
        """What the features of a batch have; a collective where there is a graph."""
        set_sample_keys(self, sample_keys(batch.index, self.seed, batch.epoch))
        found = embedded(self.schema, outputs, batch, self.fake_quantisers)
        dense = zip(self.schema.dense, batch.dense.unsqueeze(2).unbind(1), strict=True)
        rows = torch.arange(len(batch.index), device=batch.index.device)
        nodes, encoded = None, self._encoded
        if self.encoder is not None and encoded is None:
            nodes = self._all_nodes(found.nodes, batch.subgraph)
            encoded = self._encode(nodes, self._graphs_of(batch))
        places = {name: self._places(batch, name).clamp(min=0) for name in self.schema.placed}
        return _Found(rows, found.pooled, dict(dense), places, nodes, encoded)

    def _all_nodes(self, slices: Mapping[str, Tensor], subgraph: Tensor | None = None) -> Tensor:
        """This rank's slices of the two tables to all nodes, users first: `[N, D]`."""
        sizes = self.schema.node_sizes
        if subgraph is not None:
            users = int((subgraph < sizes[0]).sum())
            sizes = (users, len(subgraph) - users)
        shares = [-(-size // world_size()) for size in sizes]
        own = [slices[n][:share] for n, share in zip(self.schema.nodes, shares, strict=True)]
        gathered = gather_rows(torch.cat(own))
        by_rank = gathered.view(world_size(), sum(shares), -1).split(shares, dim=1)
        parts = zip(by_rank, sizes, strict=True)
        return torch.cat([part.flatten(0, 1)[:size] for part, size in parts])

    def _places(self, batch: Batch, name: str) -> Tensor:
        """By a feature, the places of nodes among those encoded, int64 `[B]`; -1 for none."""
        node = batch.node(name, self.schema)
        if batch.subgraph is None:
            return node
        place = torch.searchsorted(batch.subgraph, node).clamp(max=len(batch.subgraph) - 1)
        return torch.where(node < 0, -1, place)

    def _graphs_of(self, batch: Batch) -> Sequence[Adjacency]:
        """What a batch is propagated over, the same on all ranks; a collective."""
        assert self.graphs is not None
        graphs = self.graphs.whole
        if batch.subgraph is not None:
            graphs = self.graphs.induced(batch.subgraph)
        if self.hidden is None:
            return graphs
        ends = torch.stack([self._places(batch, name) for name in self.hidden], dim=1)
        user, *items = gather_rows(ends).unbind(1)
        there = [(user >= 0) & (item >= 0) for item in items]
        return [
            graph.without(user[known], item[known])
            for graph, item, known in zip(graphs, items, there, strict=True)
        ]

    def _encode(self, nodes: Tensor, graphs: Sequence[Adjacency]) -> Tensor:
        """Nodes `[N, D]` to the vectors of all behaviours side by side, `[N, K·D']`."""
        assert self.encoder is not None
        return self.encoder(nodes, graphs).flatten(1)

    def _take(self, fields: dict[str, Tensor], features: list[str]) -> Fields:
        """Some features; dense ones are put together."""
        none = fields[features[0]].new_empty(len(fields[features[0]]), 0)
        dense = [fields[name] for name in features if name in self.schema.dense]
        vectors = [fields[name] for name in features if name not in self.schema.dense]
        return Fields(vectors, torch.cat([none, *dense], dim=1))

    def _tower(self, part: Callable[[], Tensor], rows: Tensor, place: tuple[int, int]) -> Tensor:
        """What a part of the pair model makes of some samples of the batch, float32.

        `place` tells one use of it from others, for its dropout.
        """
        number = torch.full_like(rows, (place[0] << 16) + place[1])
        autocast = torch.autocast(rows.device.type, torch.bfloat16, enabled=self.bf16)
        with seeing(self.pair, rows, number), autocast:
            return part().float()

    def _penalty(self, found: "_Found", vectors: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Half the squared length of each sample's rows of tables; zeros where not wanted."""
        total = torch.zeros(len(rows), device=rows.device)
        if self.l2:
            own = (found.of_table(name, vectors[name], rows) for name in vectors)
            total = sum(((x * x).sum(1) for x in own if x is not None), total) / 2
        return total


@dataclass(frozen=True)
class _Found:
    """What the features of a batch have."""

    rows: Tensor
    """int64 `[B]`: 0, 1, …"""
    pooled: dict[str, Tensor]
    """Vectors `[B, D]` of ids and id lists."""
    dense: dict[str, Tensor]
    """`[B, 1]`"""
    places: Mapping[str, Tensor]
    """Of features that name nodes, int64 `[B]`; that of node 0 where there is none, which counts
    nowhere."""
    nodes: Tensor | None
    """Rows of the tables, `[N, D]`; None where a graph was encoded before."""
    encoded: Tensor | None
    """Vectors of all behaviours side by side, `[N, K·D']`."""

    # index_select, not an index: the backward of that one takes many times as long on several
    # threads (98,304 of 27,402 rows of 192 columns, two threads: 2,055 ms instead of 139).

    def vectors(self, name: str, rows: Tensor) -> Tensor:
        """Those of a feature in some samples, `[n, D]`."""
        if name in self.places:
            assert self.encoded is not None
            return self.encoded.index_select(0, self.places[name][rows])
        return (self.pooled | self.dense)[name].index_select(0, rows)

    def of_table(self, name: str, vectors: Tensor, rows: Tensor) -> Tensor | None:
        """The table's rows behind the `vectors` of a feature, `[n, D]`; None where no table is."""
        if name in self.places:
            nodes = self.nodes
            return None if nodes is None else nodes.index_select(0, self.places[name][rows])
        return vectors if name in self.pooled else None


class _Columns(torch.autograd.Function):
    """Columns `[B]` side by side; where the gradient of one is zero, it has none.

    One task's backward (balancing by gradients has one for each) so ends at the tables' vectors of
    its own sides, and does not carry zeros through those of all others.
    """

    @staticmethod
    def forward(ctx: Any, *columns: Tensor) -> Tensor:
        return torch.stack(columns, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        reached = (gradient != 0).any(0).tolist()
        parts = gradient.unbind(1)
        return tuple(part if there else None for part, there in zip(parts, reached, strict=True))
