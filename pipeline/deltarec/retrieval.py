# SPDX-License-Identifier: Apache-2.0
"""Evaluates pairwise tasks: the rank of each held-out item among the candidates of its query.

Held-out pairs go to the rank that owns their query, by a hash of its id, and so do the pairs that
`ranking.exclude` names. Then all ranks go through the items, a chunk at a time: a chunk is looked
up in the sharded tables, and each rank scores it for its own queries and counts who is above.
Memory holds the pairs, a vector for each, and one block of scores.

Beside all items, candidates may be some that are drawn, or those that the query is known for by
other behaviours: re-ranked by the model, and by popularity alone.

A rank is 1 + the number of other candidates that score **at least** as high: a tie counts against
the model, and nothing is left to chance; a model that gives all items one score finds nothing.
Scores are computed in float64 and compared in float32, so that the order of summation makes no tie
and breaks none.
"""

import copy
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
from deltarec.data.pairs import read_pairs
from deltarec.data.reader import Reader
from deltarec.data.schema import Ranking, Schema
from deltarec.distributed import all_sum, exchange, owners
from deltarec.layers.rows import occurrences
from deltarec.metrics import RANKING_METRICS
from deltarec.metrics.evaluation import Result, Values
from deltarec.models.pairs import PairNetwork
from deltarec.models.roles import PairModel

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

    def those(self, pairs: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
        """The places of their queries, and those of some pairs, ascending, whose query is here."""
        query = pairs // num_items
        place = torch.searchsorted(self.ids, query).clamp(max=len(self.ids) - 1)
        here = self.ids[place] == query if len(self.ids) else query < 0
        return place[here], pairs[here]


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
        self.pair: PairModel = copy.deepcopy(self.network.pair).double()
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

    def compute(
        self, known: Mapping[str, Sequence[Tensor]], own: Mapping[str, Tensor] | None = None
    ) -> Result:
        """The metrics of all pairs added, equal on all ranks; a collective.

        Args:
            known: by task, what `known_pairs` gave of each of the data to exclude.
            own: by task whose `ranking.own` asks for it, what `own_pairs` gave.

        Raises:
            ValueError: on all ranks, if a score is NaN or infinite, or a query has no candidates.
        """
        none = torch.empty(0, dtype=torch.int64)
        return {
            name: {
                "all": self._values(
                    name,
                    task.ranking,
                    torch.cat([none, *known[name]]).unique(),
                    (own or {}).get(name, none),
                ),
                "scenario": {},
            }
            for name, task in self.schema.tasks.items()
        }

    def _values(self, name: str, ranking: Ranking, known: Tensor, own: Tensor) -> Values:
        held = _held_out(self.held[name])
        found = dict.fromkeys(ranking.kinds, torch.empty(0, dtype=torch.int64))
        if all_sum(torch.tensor(len(held.item))):
            found = self._ranks(name, ranking, held, known, own)
        metrics = {f"{m}@{k}": RANKING_METRICS[m](k) for k in ranking.at for m in RANKING_METRICS}
        rows = []
        for kind, ranks in found.items():
            # Against drawn items, each held-out item is a case by itself.
            alone = kind == "sampled_"
            query = torch.arange(len(ranks)) if alone else held.query
            num_queries = len(ranks) if alone else len(held.ids)
            values = [metric.values(ranks, query, num_queries).sum() for metric in metrics.values()]
            rows.append(torch.stack([torch.tensor(num_queries).double(), *values]))
        totals = all_sum(torch.stack(rows)).tolist()
        means: Values = {
            f"{kind}{metric}": value / count if count else None
            for kind, (count, *row) in zip(found, totals, strict=True)
            for metric, value in zip(metrics, row, strict=True)
        }
        return {**means, "n": int(all_sum(torch.tensor(len(held.ids))))}

    def _ranks(
        self, name: str, ranking: Ranking, held: HeldOut, known: Tensor, own: Tensor
    ) -> dict[str, Tensor]:
        """By kind, int64 `[P]` of the held-out items."""
        num_items = self.schema.num_items(name)
        queries = held.queries.to(self.device).double()
        scored = self.pair.score(name, queries[held.query], held.items.to(self.device).double())
        scored = scored.float()
        popularity = all_sum(torch.bincount(known % num_items, minlength=num_items))
        place, known = held.those(known, num_items)
        lists = {"own_": _Candidates.of(held, own[~torch.isin(own, known)], num_items)}
        if ranking.against is not None:
            drawn = self._drawn(name, ranking.against, num_items, held, known)
            lists["sampled_"] = _Candidates.drawn(held, drawn)
        bad = (~scored.isfinite()).sum().cpu()
        above = torch.zeros_like(held.item, device=self.device)
        block_size = max(1, BLOCK // ranking.chunk // self.pair.numbers_per_score)
        for start in range(0, num_items, ranking.chunk):
            stop = min(start + ranking.chunk, num_items)
            vectors = self._items(name, start, stop).double()
            here = (known % num_items >= start) & (known % num_items < stop)
            excluded = place[here], known[here] % num_items - start
            chunk = _Chunk(start, stop, vectors, excluded)
            for pairs, block in _blocks(held, block_size) if ranking.all else ():
                scores = self.pair.scores(name, queries[block], vectors).float()
                for candidates in lists.values():
                    candidates.take(scores, block, start, stop)
                scores = chunk.without_excluded(scores, block.start)
                bad += (scores.isnan() | (scores == torch.inf)).sum().cpu()
                for some in _parts(pairs, block_size):
                    row = held.query[some].to(self.device) - block.start
                    above[some] += chunk.others(scores, row, scored[some], held.item[some])
                self.beat()  # with heads that score each pair, a chunk may take minutes
            for candidates in lists.values() if not ranking.all else ():
                candidates.score(name, self.pair, queries, vectors, start)
            self.beat()
        for candidates in lists.values() if not ranking.all else ():
            bad += (candidates.scores.isnan() | (candidates.scores == torch.inf)).sum()
        if count := int(all_sum(bad)):
            raise ValueError(
                f"task '{name}': {count} scores are NaN or infinite: look for a learning rate that "
                "is too large"
            )
        # The larger, the more popular; of equals the one with the lower id.
        popular = popularity * num_items - torch.arange(num_items)
        mine, found = scored.cpu(), {"": 1 + above.cpu()}
        if "sampled_" in lists:
            others = lists["sampled_"].scores.view(len(held.item), -1)
            found["sampled_"] = 1 + (others >= mine.unsqueeze(1)).sum(1)
        candidates = lists["own_"]
        found["own_"] = candidates.ranks(held, candidates.scores, mine, num_items)
        found["popular_"] = candidates.ranks(
            held, popular[candidates.item], popular[held.item], num_items
        )
        return {kind: found[kind] for kind in ranking.kinds}

    def _items(self, name: str, start: int, stop: int) -> Tensor:
        """The vectors of the items from `start` to `stop`, `[M, D]`."""
        feature = self.schema.tasks[name].item[0]
        batch = _batch_of_items(self.schema, feature, start, stop).to(self.device)
        return self.network.item(name, batch, self.tables(batch)).float()

    def _drawn(
        self, name: str, number: int, num_items: int, held: HeldOut, known: Tensor
    ) -> Tensor:
        """Candidates of each pair, int64 `[P, number]`: any item that the query has nowhere.

        Keyed by seed, query and item, so they are the same in every evaluation.
        """
        pairs = (held.ids[held.query] * num_items + held.item).numpy()
        query = held.ids[held.query].numpy()
        forbidden = np.union1d(known.numpy(), pairs)
        most = np.bincount(np.searchsorted(held.ids.numpy(), forbidden // num_items)).max(initial=0)
        full = all_sum(torch.tensor(int(most >= num_items)))
        if full:
            raise ValueError(
                f"tasks.{name}.ranking.against: got {number}, but a query has all {num_items} "
                "items, so none can be drawn; leave it out and rank among all"
            )
        drawn = np.empty((len(pairs), number), dtype=np.int64)
        for column in range(number):
            left, attempt = np.arange(len(pairs)), 0
            while len(left):
                bits = hashed(pairs[left], self.seed, column, attempt)
                drawn[left, column] = uniform(bits, num_items)
                found = query[left] * num_items + drawn[left, column]
                place = np.searchsorted(forbidden, found).clip(max=len(forbidden) - 1)
                left, attempt = left[forbidden[place] == found], attempt + 1
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

    def without_excluded(self, scores: Tensor, first: int) -> Tensor:
        """The scores `[q, M]` of q queries from place `first` on, with -inf where excluded."""
        place, item = self.excluded
        low, high = torch.searchsorted(place, torch.tensor([first, first + len(scores)])).tolist()
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
        # In place, 1.0 where true, exact up to 2^24: a sum of bools sums a copy in int64.
        count = scores[row].ge_(own.unsqueeze(1)).sum(1).long()
        here = ((item >= self.start) & (item < self.stop)).to(scores.device)
        column = (item - self.start).to(scores.device)[here]
        count[here] -= (scores[row[here], column] >= own[here]).long()
        return count


@dataclass(frozen=True)
class _Candidates:
    """Items that queries are known for, or that are drawn for them, and what they score: C."""

    place: Tensor
    """int64 `[C]`, ascending places of their queries."""
    item: Tensor
    """int64 `[C]`"""
    scores: Tensor
    """float32 `[C]`"""

    @classmethod
    def of(cls, held: HeldOut, pairs: Tensor, num_items: int) -> "_Candidates":
        place, pairs = held.those(pairs, num_items)
        return cls(place, pairs % num_items, torch.full(place.shape, -torch.inf))

    @classmethod
    def drawn(cls, held: HeldOut, items: Tensor) -> "_Candidates":
        """Of the items drawn for each pair, `[P, N]`."""
        place = held.query.repeat_interleave(items.shape[1])
        return cls(place, items.flatten(), torch.full(place.shape, -torch.inf))

    def score(
        self, task: str, pair: PairModel, queries: Tensor, vectors: Tensor, start: int
    ) -> None:
        """Score the candidates among some items, from `start` on; arguments as in `PairModel`."""
        [here] = ((self.item >= start) & (self.item < start + len(vectors))).nonzero(as_tuple=True)
        size = max(1, BLOCK // max(2 * vectors.shape[1], pair.numbers_per_score))
        for some in here.split(size):
            row, column = (x[some].to(vectors.device) for x in (self.place, self.item - start))
            self.scores[some] = pair.score(task, queries[row], vectors[column]).float().cpu()

    def take(self, scores: Tensor, block: slice, start: int, stop: int) -> None:
        """Keep the candidates' scores, of some queries and of the items from `start` to `stop`."""
        bounds = torch.tensor([block.start, block.stop])
        low, high = torch.searchsorted(self.place, bounds).tolist()
        item = self.item[low:high]
        [here] = ((item >= start) & (item < stop)).nonzero(as_tuple=True)
        row, column = self.place[low:high][here] - block.start, item[here] - start
        self.scores[low + here] = scores[row.to(scores.device), column.to(scores.device)].cpu()

    def ranks(self, held: HeldOut, values: Tensor, own: Tensor, num_items: int) -> Tensor:
        """int64 `[P]`, of the held-out items by values `[C]`; last of all where it is none."""
        lengths = torch.bincount(self.place, minlength=len(held.ids))
        starts = lengths.cumsum(0) - lengths
        pair, offset = occurrences(lengths[held.query], int(lengths[held.query].sum()))
        candidate = starts[held.query][pair] + offset
        itself = self.item[candidate] == held.item[pair]
        above = (values[candidate] >= own[pair]) & ~itself
        rank = 1 + torch.zeros_like(held.item).index_add_(0, pair, above.long())
        there = torch.zeros_like(held.item).index_add_(0, pair, itself.long())
        return torch.where(there > 0, rank, num_items + 1)


def own_pairs(
    schema: Schema, reader: Reader, after_batch: Callable[[Batch], None]
) -> dict[str, Tensor]:
    """By task with `ranking.own`, what queries that this rank owns have there; a collective.

    Returns:
        query · items + item, ascending, int64.

    Raises:
        ValueError: there is none at all.
    """
    wanted = {
        name: [(task.query[0], feature) for feature in task.ranking.own]
        for name, task in schema.tasks.items()
        if task.ranking.own
    }
    read = read_pairs(reader, [pair for pairs in wanted.values() for pair in pairs], after_batch)
    found = {
        name: _owned([read[pair] for pair in pairs], schema.num_items(name))
        for name, pairs in wanted.items()
    }
    for name, pairs in found.items():
        if not all_sum(torch.tensor(len(pairs))):
            raise ValueError(
                f"tasks.{name}.ranking.own: no query of data.events has an item under "
                f"{', '.join(schema.tasks[name].ranking.own)}; name other features, or events that "
                "have them"
            )
    return found


def known_pairs(
    schema: Schema, reader: Reader, after_batch: Callable[[Batch], None]
) -> dict[str, Tensor]:
    """By task, the pairs in some data whose queries this rank owns; a collective.

    Returns:
        query · items + item, ascending, int64.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in schema.tasks}
    for batch in reader.read(Position(), epochs=1):
        for t, (name, task) in enumerate(schema.tasks.items()):
            chosen = batch.mask[:, t]
            pair = batch.ids(task.query[0])[chosen], batch.ids(task.item[0])[chosen]
            found[name].append(pair)
        after_batch(batch)
    return {name: _owned(parts, schema.num_items(name)) for name, parts in found.items()}


def _owned(parts: Sequence[tuple[Tensor, Tensor]], num_items: int) -> Tensor:
    """All ranks' queries and items, as pairs, of the queries that this rank owns.

    What a query is known for may be more than the task's items: other ids of their table.
    """
    items = [(query[item < num_items], item[item < num_items]) for query, item in parts]
    pairs = torch.cat([query * num_items + item for query, item in items])
    [pairs] = exchange([pairs], owners(pairs // num_items))
    return pairs.unique()


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


def _parts(whole: slice, size: int) -> list[slice]:
    """At most so many places of a slice at a time."""
    starts = range(whole.start, whole.stop, size)
    return [slice(start, min(start + size, whole.stop)) for start in starts]
