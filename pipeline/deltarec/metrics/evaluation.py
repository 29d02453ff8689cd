# SPDX-License-Identifier: Apache-2.0
"""Metrics of a whole evaluation, over all samples, by scenario and slice, equal on every rank.

Each rank keeps the predictions of its own samples. `compute` takes one task at a time, moves its
samples to where its metrics want them (`Partition`), and gathers nothing but statistics. Ranks get
about the same number of samples, except that one score goes whole to one rank, and so does a user.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import TypedDict

from deltarec.distributed import all_sum, exchange, owners, world_size
from deltarec.metrics import METRICS
from deltarec.metrics.metric import Kind, Metric, Partition, Samples

Values = dict[str, float | int | None]
"""Metric values by name, None where not defined, and the number of samples as `n`."""


class TaskResult(TypedDict):
    """The values of one task over all samples, and by scenario where there are several.

    Slices stand among the scenarios, as `COLUMN BUCKET`.
    """

    all: Values
    scenario: dict[str, Values]


Result = dict[str, TaskResult]
"""The values by task."""


class Grouping(NamedTuple):
    """A way to split samples."""

    names: Sequence[str]
    """Of its groups."""
    of: Callable[[Samples], Tensor]
    """The group of each sample, int64 `[n]`."""


class Totals(Protocol):
    """What gathers statistics over several evaluations."""

    def add(
        self, task: str, grouping: int, samples: Samples, statistics: Mapping[str, Tensor]
    ) -> None: ...


SMALLEST_PROBABILITY = 1e-7
NUM_PROBES = 4096
"""Scores that a rank shows the others for cutting the range; 4096 make parts equal to about 3 %."""


class Evaluation:
    """Collects predictions batch by batch, then computes the metrics of every task exactly.

    Args:
        tasks: the name of each of T tasks, and its metrics.
        scenarios: the names of the scenarios, by index; with none or one there is no split.
        has_user: whether the data names users.
        slices: columns by whose values samples are split, and the lower bounds of their buckets.

    Raises:
        ValueError: a metric is unknown, for another kind of task, or needs users and has none.
    """

    def __init__(
        self,
        tasks: Sequence[tuple[str, Sequence[str]]],
        scenarios: Sequence[str] = (),
        has_user: bool = False,
        slices: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.tasks = [
            _Task(name, metrics, _kind(name, metrics, has_user)) for name, metrics in tasks
        ]
        self.groupings = [Grouping(["all"], lambda samples: torch.zeros_like(samples.scenario))]
        if len(scenarios) > 1:
            self.groupings.append(Grouping(scenarios, lambda samples: samples.scenario))
        self._num_slices = len(slices or {})
        for place, (column, bounds) in enumerate((slices or {}).items()):
            names = [f"{column} {bucket}" for bucket in bucket_names(bounds)]
            self.groupings.append(Grouping(names, partial(_slice, place=place)))
        self._needs_user = any(
            METRICS[metric].partition == "user" for _, metrics in tasks for metric in metrics
        )
        self._batches: list[_Batch] = []

    def update(
        self,
        prediction: Tensor,
        label: Tensor,
        mask: Tensor,
        scenario: Tensor,
        user: Tensor | None = None,
        slices: Tensor | None = None,
    ) -> None:
        """Add a batch from any device. Ranks may add different numbers of batches, also none.

        Args:
            prediction: `[B, T]`, kept in float32: probabilities of binary tasks, otherwise values.
            label: `[B, T]`, kept in float32.
            mask: bool `[B, T]`, whether the sample counts for the task.
            scenario: integers `[B]`, indices into the names of the scenarios.
            user: int64 `[B]`, any values; required, and kept, where a metric needs it.
            slices: integers `[B, S]`, the bucket of each column; None where there is none.
        """
        assert user is not None or not self._needs_user
        self._batches.append(
            _Batch(
                _keep(prediction, torch.float32),
                _keep(label, torch.float32),
                _keep(mask, torch.bool),
                _keep(scenario, torch.int32),
                _keep(user, torch.int64) if self._needs_user and user is not None else None,
                _keep(slices, torch.int32) if slices is not None else None,
            )
        )

    def compute(self, totals: Totals | None = None) -> Result:
        """The metrics of all samples of all ranks, equal on each; every rank must call it.

        Args:
            totals: is told of the statistics.

        Raises:
            ValueError: on every rank, if a prediction or label is not what its task needs.
        """
        return {
            task.name: self._compute(index, task, totals) for index, task in enumerate(self.tasks)
        }

    def _compute(self, index: int, task: "_Task", totals: Totals | None) -> TaskResult:
        samples = self._samples(index)
        _check(task, samples)
        if task.kind == "binary":
            clipped = samples.prediction.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
            samples = replace(samples, prediction=clipped)
        parts: dict[Partition, Samples] = {"none": samples}
        for metric in task.metrics:
            partition = METRICS[metric].partition
            if partition not in parts:
                parts[partition] = PARTITIONS[partition](samples)

        overall, *split = (
            self._grouped(task, parts, number, totals) for number in range(len(self.groupings))
        )
        return {
            "all": overall["all"],
            "scenario": {name: row for part in split for name, row in part.items()},
        }

    def _grouped(
        self,
        task: "_Task",
        parts: dict[Partition, Samples],
        number: int,
        totals: Totals | None,
    ) -> dict[str, Values]:
        """The values of each group of one grouping, by name."""
        grouping = self.groupings[number]
        statistics = {}
        for name in task.metrics:
            metric = METRICS[name]()
            part = parts[metric.partition]
            local = metric.local(part, grouping.of(part), len(grouping.names))
            statistics[name] = _gather(local)
        samples = parts["none"]
        counts = torch.bincount(grouping.of(samples), minlength=len(grouping.names))
        statistics["n"] = _gather(counts)
        if totals is not None:
            totals.add(task.name, number, samples, statistics)
        return values_of(task.metrics, grouping.names, statistics)

    def _samples(self, task: int) -> Samples:
        """This rank's samples of one task."""
        rows = [batch.mask[:, task].nonzero().squeeze(dim=1) for batch in self._batches]

        def select(columns: list[Tensor], dtype: torch.dtype, *width: int) -> Tensor:
            chosen = [column[row] for column, row in zip(columns, rows, strict=True)]
            return torch.cat([torch.empty(0, *width, dtype=dtype), *chosen]).to(dtype)

        users = [batch.user for batch in self._batches if batch.user is not None]
        slices = [batch.slices for batch in self._batches if batch.slices is not None]
        return Samples(
            prediction=select(
                [batch.prediction[:, task] for batch in self._batches], torch.float64
            ),
            label=select([batch.label[:, task] for batch in self._batches], torch.float64),
            scenario=select([batch.scenario for batch in self._batches], torch.int64),
            user=select(users, torch.int64) if self._needs_user else None,
            slices=select(slices, torch.int64, self._num_slices) if self._num_slices else None,
        )


class _Task(NamedTuple):
    name: str
    metrics: Sequence[str]
    kind: Kind | None


class _Batch(NamedTuple):
    prediction: Tensor
    label: Tensor
    mask: Tensor
    scenario: Tensor
    user: Tensor | None
    slices: Tensor | None


def values_of(
    metrics: Sequence[str],
    names: Sequence[str],
    statistics: Mapping[str, Tensor],
    known: Mapping[str, type[Metric]] = METRICS,
) -> dict[str, Values]:
    """The values of each group, by its name.

    Args:
        metrics: of the task.
        names: of the groups.
        statistics: of each metric `[ranks, num_groups, k]`, and as `n` the counts
            `[ranks, num_groups]`.
        known: the metrics by name.
    """
    columns = {name: known[name]().combine(statistics[name]) for name in metrics}
    columns["n"] = statistics["n"].sum(dim=0).long().tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return dict(zip(names, rows, strict=True))


def bucket_names(bounds: Sequence[int]) -> list[str]:
    """What a person calls the buckets between lower bounds: <1, 1, 2-5, 6+ for 1, 2, 6."""
    between = [
        str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in itertools.pairwise(bounds)
    ]
    return [f"<{bounds[0]}", *between, f"{bounds[-1]}+"]


def _slice(samples: Samples, place: int) -> Tensor:
    assert samples.slices is not None
    return samples.slices[:, place]


def _keep(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy on the CPU, so that a view keeps no larger tensor alive."""
    return tensor.detach().to("cpu", dtype, copy=True)


def _kind(task: str, metrics: Sequence[str], has_user: bool) -> Kind | None:
    """The kind of task that all the metrics are for, None without metrics."""
    for metric in metrics:
        if metric not in METRICS:
            known = ", ".join(METRICS)
            raise ValueError(f"task '{task}': unknown metric '{metric}': expected one of {known}")
        if METRICS[metric].partition == "user" and not has_user:
            raise ValueError(
                f"task '{task}': metric '{metric}' needs the user of each sample: "
                "name the column in data.user, or leave the metric out"
            )
    kinds: dict[str, Kind] = {metric: METRICS[metric].kind for metric in metrics}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{metric} ({kind})" for metric, kind in kinds.items())
        raise ValueError(f"task '{task}': metrics are for tasks of one kind, but it has {found}")
    return kinds[metrics[0]] if metrics else None


def _check(task: _Task, samples: Samples) -> None:
    """Refuse, on all ranks alike, what would make the metrics meaningless."""
    p, y = samples.prediction, samples.label
    if task.kind == "binary":
        wrong = [~((p >= 0) & (p <= 1)), (y != 0) & (y != 1)]
        wanted = ["probabilities in [0, 1]", "0 or 1"]
    else:
        wrong, wanted = [~p.isfinite(), ~y.isfinite()], ["finite numbers", "finite numbers"]
    counts = all_sum(torch.stack([flags.sum() for flags in wrong])).tolist()
    for count, column, expected in zip(counts, ["predictions", "labels"], wanted, strict=True):
        if count:
            raise ValueError(
                f"task '{task.name}': {count} {column} are not {expected}: "
                f"look for NaN, or for a task of another kind"
            )


def _gather(tensor: Tensor) -> Tensor:
    """A tensor of equal shape on each rank, from all of them: `[ranks, ...]`."""
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


def _by_score(samples: Samples) -> Samples:
    """Cut the range of scores into one part a rank, lower ones to lower ranks."""
    score, ranks = samples.prediction, world_size()
    places = _evenly(len(score), NUM_PROBES)
    probes = score[places] if len(score) else score.new_zeros(NUM_PROBES)
    counts = _gather(torch.tensor(len(score)))
    probes, order = _gather(probes).flatten().sort()
    below = counts.repeat_interleave(NUM_PROBES)[order].cumsum(dim=0)
    cuts = torch.searchsorted(below, below[-1] * torch.arange(1, ranks) // ranks)
    destination = torch.bucketize(score, probes[cuts])
    return _move(replace(samples, user=None), destination)


def _evenly(length: int, number: int) -> Tensor:
    """So many places from the first to the last of a sequence, int64."""
    return torch.arange(number) * (length - 1) // (number - 1)


def _by_user(samples: Samples) -> Samples:
    """Send each user to the rank that a hash of it names."""
    assert samples.user is not None
    return _move(samples, owners(samples.user))


PARTITIONS: dict[Partition, Callable[[Samples], Samples]] = {
    "score": _by_score,
    "user": _by_user,
}


def _move(samples: Samples, destination: Tensor) -> Samples:
    """Send each sample to its rank, and order there by prediction."""
    columns = {field.name: getattr(samples, field.name) for field in fields(samples)}
    present = {name: column for name, column in columns.items() if column is not None}
    if world_size() > 1:
        moved = exchange(list(present.values()), destination)
        present = dict(zip(present, moved, strict=True))
    order = present["prediction"].argsort()
    return replace(samples, **{name: column[order] for name, column in present.items()})
