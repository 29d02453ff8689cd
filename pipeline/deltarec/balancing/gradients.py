# SPDX-License-Identifier: Apache-2.0
"""One gradient for each task, where sharded tables end and dense layers begin.

TorchRec's fused optimisers update rows inside backward, so a row never has one gradient for each
task. The tasks' gradients are therefore taken at the **boundary**, the looked-up vectors, and of
the shared dense parameters; they are combined there, and one combined gradient goes on through the
tables. T tasks cost T dense backwards, and the exchanges of one.

A parameter that one task alone reaches, like its tower, is not shared: it has that task's gradient
as it is.
"""

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import JaggedTensor, KeyedTensor
from torchrec.distributed.types import Awaitable

from deltarec.balancing.by_task import ByTask
from deltarec.balancing.draws import Place
from deltarec.balancing.rows import TABLE, Rows, RowWeights
from deltarec.data.batch import Batch
from deltarec.distributed import all_sum


class TaskGradients:
    """The tasks' gradients of one batch, on this rank, and what is to become of them.

    They are gradients of this rank's shares of the losses, which have the number of ranks as a
    factor. So the gradient of a global mean loss is, for a parameter, their mean over the ranks,
    and for the vectors of a rank's samples its own divided by the number of ranks.

    Args:
        losses: this rank's shares `[T]`, with their graph.
        boundary: the looked-up vectors, leaves of that graph.
        shared: parameters that several tasks reach.
        own: parameters that one task reaches.
        places: whose vectors each tensor of the boundary has.
        by_row: whether inner products and norms are of the tables' rows, not of the vectors.
        tables: number of each feature's table; for `by_row`.
    """

    def __init__(
        self,
        losses: Tensor,
        boundary: Sequence[Tensor],
        shared: Sequence[Tensor],
        own: Sequence[Tensor] = (),
        places: Sequence[Place] = (),
        by_row: bool = False,
        tables: Mapping[str, int] | None = None,
    ) -> None:
        self.places = places
        self.by_row = by_row
        self._tables = tables or {}
        self._global_shared: list[Tensor] | None = None
        self._losses = losses.detach()
        self.num_tasks = len(losses)
        inputs = [*boundary, *shared, *own]
        found = [
            torch.autograd.grad(
                loss, inputs, retain_graph=task + 1 < self.num_tasks, allow_unused=True
            )
            for task, loss in enumerate(losses)
        ]
        by_task = [ByTask.of(g, x) for g, x in zip(zip(*found, strict=True), inputs, strict=True)]
        ends = len(boundary), len(boundary) + len(shared)
        self.at_boundary = by_task[: ends[0]]
        """For each tensor of the boundary its gradients."""
        self.at_shared = by_task[ends[0] : ends[1]]
        """Likewise for each shared parameter."""
        self.combined_own = [g.weighted() for g in by_task[ends[1] :]]
        """Of each parameter that one task reaches."""

    @cached_property
    def boundary(self) -> list[Tensor]:
        """For each tensor of the boundary its gradients of all tasks, `[T, …]`."""
        return [g.all() for g in self.at_boundary]

    @cached_property
    def shared(self) -> list[Tensor]:
        """Likewise for each shared parameter."""
        return [g.all() for g in self.at_shared]

    @cached_property
    def combined_boundary(self) -> list[Tensor]:
        """What goes on through the tables; the sum of the tasks' if a method sets nothing else."""
        return [g.weighted() for g in self.at_boundary]

    @cached_property
    def combined_shared(self) -> list[Tensor]:
        """Likewise for each shared parameter, to be averaged over the ranks."""
        return [g.weighted() for g in self.at_shared]

    def losses(self) -> Tensor:
        """The tasks' losses over the global batch, float64 `[T]`."""
        return _mean_over_ranks(self._losses.double())

    def global_shared(self) -> list[Tensor]:
        """Gradients of the shared parameters over the global batch, `[T, …]` each."""
        if self._global_shared is None:
            flat = [g.reshape(self.num_tasks, -1) for g in self.shared]
            means = _means_over_ranks(flat, dim=1)
            self._global_shared = [m.view_as(g) for m, g in zip(means, self.shared, strict=True)]
        return self._global_shared

    def global_own(self) -> list[Tensor]:
        """Gradients of each task's own parameters over the global batch."""
        means = _means_over_ranks([g.flatten() for g in self.combined_own], dim=0)
        return [m.view_as(g) for m, g in zip(means, self.combined_own, strict=True)]

    def feature_norms(self) -> dict[str, Tensor]:
        """Norms of the tasks' gradients of each feature's vectors of all ranks, float64 `[T]`.

        `by_row`: of the rows of the feature's table, whichever features they are looked up by.
        """
        if self.by_row:
            return self._table_norms()
        found: dict[str, Tensor] = {}
        for gradient, place in zip(self.boundary, self.places, strict=True):
            squares = gradient.double().square().sum(1)
            by_feature = squares.split(list(place.features.values()), dim=1)
            found |= {n: s.sum(1) for n, s in zip(place.features, by_feature, strict=True)}
        if not found:
            return {}
        local = torch.stack([found[name] for name in sorted(found)]) / dist.get_world_size()
        return dict(zip(sorted(found), _mean_over_ranks(local).sqrt(), strict=True))

    def _table_norms(self) -> dict[str, Tensor]:
        rows = self.rows().owned().rows
        squares = rows.gradients.double().square().sum(2)
        sums = squares.new_zeros(max(self._tables.values()) + 1, self.num_tasks)
        norms = all_sum(sums.index_add_(0, rows.keys // TABLE, squares)).sqrt()
        return {name: norms[self._tables[name]] for place in self.places for name in place.features}

    def scale_features(self, scales: Mapping[str, Tensor]) -> None:
        """Combine the boundary's by one weight a feature and task, `[T]` each."""
        for i, (gradient, place) in enumerate(zip(self.boundary, self.places, strict=True)):
            columns = [scales[n].unsqueeze(1).expand(-1, w) for n, w in place.features.items()]
            weights = torch.cat(columns, dim=1).to(gradient).unsqueeze(1)
            self.combined_boundary[i] = (weights * gradient).sum(0)

    def gram(self) -> Tensor:
        """Inner products of the tasks' gradients over the global batch, float64 `[T, T]`."""
        return self.boundary_gram() + _products(self.global_shared(), self._losses)

    def boundary_gram(self) -> Tensor:
        """The part of the looked-up vectors, or of the rows, of all ranks in `gram`."""
        if self.by_row:
            return all_sum(self.rows().owned().rows.products())
        none = self._losses.new_zeros(self.num_tasks, self.num_tasks, dtype=torch.float64)
        local = sum((g.products() for g in self.at_boundary), none) / dist.get_world_size()
        return _mean_over_ranks(local)

    def rows(self) -> Rows:
        """The tables' rows that this rank has looked up."""
        keys = [place.keys() for place in self.places]
        return Rows.of(keys, self.at_boundary, self.num_tasks)

    def weigh(self, weights: Tensor) -> None:
        """Combine by one weight a task, `[T]`."""
        weights = weights.to(self._losses)
        self.combined_boundary = [g.weighted(weights) for g in self.at_boundary]
        self.combined_shared = [g.weighted(weights) for g in self.at_shared]

    def weigh_rows(self, rows: RowWeights) -> None:
        """Combine the boundary's by one weight a task and row."""
        combined = []
        for place, found in zip(self.places, self.at_boundary, strict=True):
            weights = rows.at(place.keys()).unsqueeze(2)
            zero = torch.zeros_like(found.like)
            combined.append(sum((weights[t] * part for t, part in found.parts.items()), zero))
        self.combined_boundary = combined


class GradientBoundary(nn.Module):
    """Runs a network on leaves in the place of its tables' outputs, and balances what comes back.

    Args:
        network: batch and outputs of the tables to the heads' columns.
        own: its parameters that one task alone reaches.
        losses: columns and batch to this rank's shares of the losses `[T]`.
        combine: the balancing method's.
        tables: of the features, by name; for methods that look at rows.
        by_row: whether inner products of the tasks' gradients are those of the tables' rows. Tasks
            that live on different samples have no vector in common, only rows.
        frozen: features whose vectors have no gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        own: Sequence[nn.Parameter],
        losses: Callable[[Tensor, Batch], Tensor],
        combine: Callable[[TaskGradients], None],
        tables: Mapping[str, str] | None = None,
        by_row: bool = False,
        frozen: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        self._by_row = by_row
        self._frozen = frozen
        names = sorted(set((tables or {}).values()))
        self._tables = {feature: names.index(table) for feature, table in (tables or {}).items()}
        # In tuples, so that they are not registered here a second time.
        self._parts = (network, losses, combine)
        alone = {id(parameter) for parameter in own}
        self._own = tuple(own)
        self._shared = tuple(
            p for p in network.parameters() if p.requires_grad and id(p) not in alone
        )

    @property
    def shared(self) -> tuple[nn.Parameter, ...]:
        """The parameters that several tasks reach, in the order of their gradients."""
        return self._shared

    def forward(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate `[1]`; and detached, plain losses `[T]` and columns `[B, C]`.

        The first is no loss: it is linear in the boundary and in the parameters, and its gradients
        are the combined ones.
        """
        network, losses, combine = self._parts
        cut, pairs, places = _cut(outputs, batch, self._tables, self._frozen)
        columns = network(batch, cut)
        by_task = losses(columns, batch)
        leaves = [leaf for _, leaf in pairs]
        gradients = TaskGradients(
            by_task, leaves, self._shared, self._own, places, self._by_row, self._tables
        )
        with torch.no_grad():
            combine(gradients)
        onwards = [*(values for values, _ in pairs), *self._shared, *self._own]
        combined = gradients.combined_boundary + gradients.combined_shared + gradients.combined_own
        linear = sum((x * g).sum() for x, g in zip(onwards, combined, strict=True))
        return torch.as_tensor(linear).reshape(1), by_task.detach(), columns.detach()


def reached_by_one_task(
    heads: nn.Module, num_tasks: int, width: int
) -> tuple[list[nn.Parameter], list[bool]]:
    """The parameters of task heads that a single task's loss depends on, and which columns so are.

    Found by trial: a copy with random parameters, so that none is without effect by its initial
    value, is differentiated on random representations and labels.

    Args:
        heads: a `TaskHeads`.
        num_tasks: T.
        width: of the representation.
    """
    parameters = list(heads.parameters())
    if any(parameter.is_meta for parameter in parameters):
        return [], []  # only checked, never trained
    random = torch.Generator().manual_seed(0)
    trial: Any = copy.deepcopy(heads).cpu().double().eval()
    for parameter in trial.parameters():
        parameter.data.normal_(generator=random)
    x = torch.randn(64, width, dtype=torch.float64, generator=random)
    labels = torch.rand(64, num_tasks, dtype=torch.float64, generator=random).round()
    columns = trial(x)
    terms = trial.losses(columns, labels, torch.ones_like(labels, dtype=torch.bool))
    inputs = [*trial.parameters(), columns]
    reached = torch.zeros(len(parameters) + columns.shape[1], dtype=torch.long)
    for task in range(num_tasks):
        loss = torch.stack([term.value.sum() for term in terms if term.task == task]).sum()
        *found, of_columns = torch.autograd.grad(
            loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        reached += torch.tensor([bool(g.any()) for g in [*found, *of_columns.T]])
    alone = (reached <= 1).tolist()
    own = [p for p, is_own in zip(parameters, alone, strict=False) if is_own]
    return own, alone[len(parameters) :]


def _keys(ids: Callable[[str], Tensor], tables: Mapping[str, int], feature: str) -> Tensor:
    """As `Place.keys`."""
    found = ids(feature)
    return torch.where(found < 0, -1, found + tables[feature] * TABLE)


class _Vectors(dict[str, Tensor]):
    """By feature, in the place of a KeyedTensor."""

    def to_dict(self) -> dict[str, Tensor]:
        return self


def _cut(
    outputs: Sequence[Any], batch: Batch, tables: Mapping[str, int], frozen: Set[str]
) -> tuple[list[Any], list[tuple[Tensor, Tensor]], list[Place]]:
    """The tables' outputs with leaves for their values; all values with leaves; their places."""
    pairs: list[tuple[Tensor, Tensor]] = []
    places: list[Place] = []

    def leaf(values: Tensor, features: dict[str, int], lengths: Tensor | None = None) -> Tensor:
        pairs.append((values, values.detach().requires_grad_()))
        ids = batch.ids if lengths is None else batch.rows
        [name] = features
        nodes = batch.nodes is not None and name in batch.nodes.keys()  # noqa: SIM118  # no mapping
        index = batch.ids(name) if nodes else batch.index
        places.append(Place(features, index, lengths, partial(_keys, ids, tables, *features)))
        return pairs[-1][1]

    cut: list[Any] = []
    for output in outputs:
        found = output.wait() if isinstance(output, Awaitable) else output
        names = found.keys()
        if frozen and next(iter(names)) in frozen:  # a collection is frozen as a whole
            cut.append(found)
        elif isinstance(found, KeyedTensor):
            vectors = found.to_dict().items()
            cut.append(_Vectors({n: leaf(x, {n: x.shape[1]}) for n, x in vectors}))
        else:
            cut.append(
                {
                    name: JaggedTensor(
                        leaf(x.values(), {name: x.values().shape[1]}, x.lengths()),
                        lengths=x.lengths(),
                    )
                    for name, x in found.items()
                }
            )
    return cut, pairs, places


def _products(gradients: Sequence[Tensor], losses: Tensor) -> Tensor:
    """Inner products of the tasks' gradients, float64 `[T, T]`."""
    total = losses.new_zeros(len(losses), len(losses), dtype=torch.float64)
    for gradient in gradients:
        flat = gradient.reshape(len(losses), -1).double()
        total += flat @ flat.T
    return total


def _means_over_ranks(tensors: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Of tensors that differ in size along one dimension, in one exchange."""
    if not tensors:
        return []
    mean = _mean_over_ranks(torch.cat(list(tensors), dim=dim))
    return list(mean.split([t.shape[dim] for t in tensors], dim=dim))


def _mean_over_ranks(tensor: Tensor) -> Tensor:
    return all_sum(tensor) / dist.get_world_size()
