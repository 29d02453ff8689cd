# SPDX-License-Identifier: Apache-2.0
"""Evaluates pairwise tasks: the rank of each held-out item among the candidates of its query.

Held-out pairs go to the rank that owns their query, by a hash of its id, and so do the pairs that
`ranking.exclude` names. Then all ranks go through the items, a chunk at a time: a chunk is looked
up in the sharded tables, and each rank scores it for its own queries and counts who is above.
Memory holds the pairs, a vector for each, and one block of scores.

A rank is 1 + the number of other candidates that score **at least** as high: a tie counts against
the model, and nothing is left to chance; a model that gives all items one score finds nothing.
Scores are computed in float64 and compared in float32, so that the order of summation makes no tie
and breaks none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltarec.data.batch import Batch, Position, make_batch
from deltarec.data.block import Block
from deltarec.data.negatives import hashed, uniform
from deltarec.data.reader import Reader
from deltarec.data.schema import Ranking, Schema
from deltarec.distributed import all_sum, exchange, owners
from deltarec.metrics import RANKING_METRICS
from deltarec.metrics.evaluation import Result, Values
from deltarec.models.pairs import PairNetwork

BLOCK = 1 << 20
"""Scores that are held at a time; of items compared with them, some more."""


@dataclass(frozen=True)
class HeldOut:
    """Pairs of one task whose queries this rank owns: P of them, of Q queries."""

    query: Tensor
    """int64 `[P]`, ascending places among the queries."""
    item: Tensor
    """int64 `[P]`"""
    ids: Tensor
    """int64 `[Q]`, ascending ids of the queries."""
    queries: Tensor
    """float32 `[Q, D]`, their vectors."""
    items: Tensor
    """float32 `[P, D]`, the vectors of the items."""


class Retrieval:
    """Evaluates the pairwise tasks of a job.

    Args:
        schema: of the job.
        model: its sharded `RankingModel`, in evaluation.
        device: of this rank.
        seed: of items drawn as candidates.
        beat: told of progress.
    """

    def __init__(
        self,
        schema: Schema,
        model: Any,
        device: torch.device,
        seed: int,
        beat: Callable[[], None],
    ) -> None:
        self.schema = schema
        self.tables = model.tables
        self.network: PairNetwork = model.network
        self.device = device
        self.seed = seed
        self.beat = beat
        self.held: dict[str, list[list[Tensor]]] = {name: [] for name in schema.tasks}

    def update(self, batch: Batch) -> None:
        """Add a batch of held-out pairs; a collective."""
        batch = batch.to(self.device)
        outputs = self.tables(batch)
        for t, (name, task) in enumerate(self.schema.tasks.items()):
            chosen = batch.mask[:, t]
            columns = [batch.ids(task.query[0]), batch.ids(task.item[0]), batch.index]
            columns += [f(name, batch, outputs) for f in (self.network.query, self.network.item)]
            self.held[name].append([column[chosen].cpu() for column in columns])

    def compute(self, known: Mapping[str, Sequence[Tensor]]) -> Result:
        """The metrics of all pairs added, equal on all ranks; a collective.

        Args:
            known: by task, what `known_pairs` gave of each of the data to exclude.

        Raises:
            ValueError: on all ranks, if a score is NaN or infinite, or a query has no candidates.
        """
        none = torch.empty(0, dtype=torch.int64)
        return {
            name: {
                "all": self._values(name, task.ranking, torch.cat([none, *known[name]]).unique()),
                "scenario": {},
            }
            for name, task in self.schema.tasks.items()
        }

    def _values(self, name: str, ranking: Ranking, known: Tensor) -> Values:
        held = _held_out(self.held[name])
        if not all_sum(torch.tensor(len(held.item))):
            ranks = torch.empty(0, dtype=torch.int64)
        else:
            ranks = self._ranks(name, ranking, held, known)
        # Against drawn items, each held-out item is a case by itself.
        query = held.query if ranking.against is None else torch.arange(len(ranks))
        num_queries = len(held.ids) if ranking.against is None else len(ranks)
        metrics = {f"{m}@{k}": RANKING_METRICS[m](k) for k in ranking.at for m in RANKING_METRICS}
        sums = [metric.values(ranks, query, num_queries).sum() for metric in metrics.values()]
        total = all_sum(torch.stack([*sums, torch.tensor(float(num_queries)).double()]))
        *sums, count = total.tolist()
        values: Values = {
            name: value / count if count else None
            for name, value in zip(metrics, sums, strict=True)
        }
        return {**values, "n": int(count)}

    def _ranks(self, name: str, ranking: Ranking, held: HeldOut, known: Tensor) -> Tensor:
        """int64 `[P]`, of the held-out items."""
        num_items = self.schema.num_items(name)
        queries = held.queries.to(self.device).double()
        own = (queries[held.query] * held.items.to(self.device).double()).sum(1).float()
        place = torch.searchsorted(held.ids, known // num_items).clamp(max=len(held.ids) - 1)
        relevant = held.ids[place] == known // num_items if len(held.ids) else known < 0
        known, place = known[relevant], place[relevant]
        drawn = None
        if ranking.against is not None:
            drawn = self._drawn(ranking.against, num_items, held, known).to(self.device)
        bad = (~own.isfinite()).sum().cpu()
        at_least = torch.zeros(len(held.item), dtype=torch.int64, device=self.device)
        for start in range(0, num_items, ranking.chunk):
            stop = min(start + ranking.chunk, num_items)
            vectors = self._items(name, start, stop).double()
            here = (known % num_items >= start) & (known % num_items < stop)
            excluded = place[here], known[here] % num_items - start
            chunk = _Chunk(start, stop, vectors, excluded)
            for pairs, block in _blocks(held, max(1, BLOCK // (stop - start))):
                scores = chunk.scores(queries[block], block.start)
                bad += (scores.isnan() | (scores == torch.inf)).sum().cpu()
                row = held.query[pairs].to(self.device) - block.start
                if drawn is None:
                    at_least[pairs] += chunk.others(scores, row, own[pairs], held.item[pairs])
                else:
                    at_least[pairs] += chunk.among(scores, row, own[pairs], drawn[pairs])
            self.beat()
        if count := int(all_sum(bad)):
            raise ValueError(
                f"task '{name}': {count} scores are NaN or infinite: look for a learning rate that "
                "is too large"
            )
        return 1 + at_least.cpu()

    def _items(self, name: str, start: int, stop: int) -> Tensor:
        """The vectors of the items from `start` to `stop`, `[M, D]`."""
        feature = self.schema.tasks[name].item[0]
        batch = _batch_of_items(self.schema, feature, start, stop).to(self.device)
        return self.network.item(name, batch, self.tables(batch)).float()

    def _drawn(self, number: int, num_items: int, held: HeldOut, known: Tensor) -> Tensor:
        """Candidates of each pair, int64 `[P, number]`: any item that the query has nowhere.

        Keyed by seed, query and item, so they are the same in every evaluation.
        """
        pairs = (held.ids[held.query] * num_items + held.item).numpy()
        query = held.ids[held.query].numpy()
        forbidden = np.union1d(known.numpy(), pairs)
        most = np.bincount(np.searchsorted(held.ids.numpy(), forbidden // num_items)).max(initial=0)
        full = all_sum(torch.tensor(int(most >= num_items)))
        if full:
            raise ValueError("ranking.against: a query has all items; rank among all of them")
        drawn = np.empty((len(pairs), number), dtype=np.int64)
        for column in range(number):
            left, attempt = np.arange(len(pairs)), 0
            while len(left):
                bits = hashed(pairs[left], self.seed, column, attempt)
                drawn[left, column] = uniform(bits, num_items)
                found = query[left] * num_items + drawn[left, column]
                left, attempt = left[np.isin(found, forbidden)], attempt + 1
        return torch.from_numpy(drawn)


@dataclass(frozen=True)
class _Chunk:
    """Some consecutive items: M of them."""

    start: int
    stop: int
    vectors: Tensor
    """float64 `[M, D]`"""
    excluded: tuple[Tensor, Tensor]
    """Places of queries, ascending, and of items in the chunk, that are no candidates."""

    def scores(self, queries: Tensor, first: int) -> Tensor:
        """float32 `[q, M]` of q queries from place `first` on; -inf where excluded."""
        scores = (queries @ self.vectors.T).float()
        place, item = self.excluded
        low, high = torch.searchsorted(place, torch.tensor([first, first + len(queries)])).tolist()
        row, column = place[low:high] - first, item[low:high]
        scores[row.to(scores.device), column.to(scores.device)] = -torch.inf
        return scores

    def others(self, scores: Tensor, row: Tensor, own: Tensor, item: Tensor) -> Tensor:
        """How many others score at least as high: int64 `[p]`.

        Args:
            scores: `[q, M]`.
            row: int64 `[p]`, of the scores of each pair's query.
            own: float32 `[p]`, the pair's own score.
            item: int64 `[p]`, its item.
        """
        count = (scores[row] >= own.unsqueeze(1)).sum(1)
        here = ((item >= self.start) & (item < self.stop)).to(scores.device)
        column = (item - self.start).to(scores.device)[here]
        count[here] -= (scores[row[here], column] >= own[here]).long()
        return count

    def among(self, scores: Tensor, row: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        """Likewise of the drawn items, int64 `[p, N]`."""
        here = (drawn >= self.start) & (drawn < self.stop)
        found = scores[row.unsqueeze(1), (drawn - self.start).clamp(0, scores.shape[1] - 1)]
        return ((found >= own.unsqueeze(1)) & here).sum(1)


def known_pairs(schema: Schema, reader: Reader, beat: Callable[[], None]) -> dict[str, Tensor]:
    """By task, the pairs in some data whose queries this rank owns; a collective.

    Returns:
        query · items + item, ascending, int64.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in schema.tasks}
    for batch in reader.read(Position(), epochs=1):
        for t, (name, task) in enumerate(schema.tasks.items()):
            query, item = batch.ids(task.query[0]), batch.ids(task.item[0])
            found[name].append((query * schema.num_items(name) + item)[batch.mask[:, t]])
        beat()
    owned: dict[str, Tensor] = {}
    for name, parts in found.items():
        pairs = torch.cat(parts)
        [pairs] = exchange([pairs], owners(pairs // schema.num_items(name)))
        owned[name] = pairs.unique()
    return owned


def _held_out(batches: list[list[Tensor]]) -> HeldOut:
    """Send the pairs to the owners of their queries; each pair once, by query."""
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    query, item, index, queries, items = exchange(columns, owners(columns[0]))
    order = np.lexsort((index.numpy(), item.numpy(), query.numpy()))
    query, item, index = query[order], item[order], index[order]
    first = torch.ones_like(query, dtype=torch.bool)
    first[1:] = (query[1:] != query[:-1]) | (item[1:] != item[:-1])
    kept = torch.from_numpy(order)[first]
    ids, place = query[first].unique_consecutive(return_inverse=True)
    # A query's features may differ from row to row: those of its first row in the data count.
    by_index = np.lexsort((index[first].numpy(), place.numpy()))
    starts = torch.searchsorted(place, torch.arange(len(ids)))
    return HeldOut(place, item[first], ids, queries[kept][by_index][starts], items[kept])


def _blocks(held: HeldOut, size: int) -> list[tuple[slice, slice]]:
    """Pairs and queries of at most so many queries at a time."""
    starts = range(0, len(held.ids), size)
    blocks = [slice(start, min(start + size, len(held.ids))) for start in starts]
    cuts = torch.searchsorted(held.query, torch.tensor([*starts, len(held.ids)])).tolist()
    return list(zip((slice(*cut) for cut in pairwise(cuts)), blocks, strict=True))


def _batch_of_items(schema: Schema, feature: str, start: int, stop: int) -> Batch:
    """A batch that looks up nothing but some items."""
    ids = np.arange(start, stop)
    rows, tasks = len(ids), len(schema.tasks)
    flat = {
        "index": ids,
        "dense": np.zeros((rows, len(schema.dense)), dtype=np.float32),
        "labels": np.zeros((rows, tasks), dtype=np.float32),
        "mask": np.zeros((rows, tasks), dtype=bool),
        "scenario": np.zeros(rows, dtype=np.int64),
        "weight": np.ones(rows, dtype=np.float32),
        "user": np.zeros(rows, dtype=np.int64),
    }
    block = Block(flat, {feature: ids}, {})
    return make_batch(block, schema, rows, rows, epoch=0, after=Position())
