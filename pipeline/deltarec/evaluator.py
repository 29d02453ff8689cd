# SPDX-License-Identifier: Apache-2.0
"""Evaluates a job's model as it stands, between two steps of its training or after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from typing_extensions import TypedDict

from deltarec.assembly import open_reader
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.embeddings.assignment import Assignments
from deltarec.job import Job, Split
from deltarec.metrics.evaluation import Evaluation, Result, Totals
from deltarec.models.cascade import with_joint_tasks
from deltarec.models.ranking import predictions
from deltarec.progress import Progress
from deltarec.retrieval import Retrieval, known_pairs, own_pairs
from deltarec.skipped import Skipped
from deltarec.supervision import Watchdog


class Evaluated(TypedDict):
    """The metrics of a checkpoint."""

    step: int
    split: str
    metrics: Result
    skipped: dict[str, int]
    """`files` that are damaged, and `rows` lost with them."""


def evaluation_of(job: Job) -> Evaluation:
    """An empty one of the job's tasks, scenarios and slices."""
    return Evaluation(
        [(name, job.metrics(name)) for name in job.measured],
        job.scenario.names if job.scenario else (),
        has_user=job.data.user is not None,
        slices=job.data.slices,
    )


class Evaluator:
    """Metrics of a model on the splits of its job.

    Args:
        job: the whole configuration.
        model: sharded.
        pipeline: that trains it.
        watchdog: told of progress.
        device: of this rank.

    Attributes:
        skipped: what each split that was read has lost to damaged files.
    """

    def __init__(
        self,
        job: Job,
        model: DistributedModelParallel,
        pipeline: Any,
        watchdog: Watchdog,
        device: torch.device,
    ) -> None:
        self.job = job
        self.model = model
        self.pipeline = pipeline
        self.watchdog = watchdog
        self.device = device
        self.assignments: Assignments = model.module.assignments  # pyright: ignore
        self.skipped: dict[Split, Skipped] = {}
        self._found: dict[Split, dict[str, Tensor]] = {}
        """Of splits that evaluations have excluded, what `known_pairs` found; of the events, what
        `own_pairs` did."""

    def evaluate(self, split: Split) -> Result:
        """Metrics of the model as it stands on a split; a collective, equal on every rank."""
        reader = open_reader(self.job, split, self.device)
        progress = Progress(f"evaluate {split}", reader.num_samples)
        skipped = self.skipped[split] = Skipped(reader, progress.say)
        score = self.score if self.job.model.pair is None else self._rank_pairs
        return score(split, reader, progress, skipped)

    def score(
        self,
        what: str,
        reader: Reader,
        progress: Progress,
        skipped: Skipped,
        totals: Totals | None = None,
    ) -> Result:
        """Metrics on all that a reader reads; the totals are told of them."""
        tasks = self.job.tasks
        evaluation = evaluation_of(self.job)
        with self.watchdog.watch(f"the evaluation on {what}"), self._plain_model() as model:
            for batch in reader.read(Position(), epochs=1):
                skipped.after_batch(batch.lost)
                batch = self.assignments.find(batch).to(self.device)
                _, (_, logits) = model(batch)
                user = batch.user if self.job.data.user else None
                columns = with_joint_tasks(
                    predictions(logits, tasks), batch.labels, batch.mask, tasks
                )
                evaluation.update(*columns, batch.scenario, user, batch.slices)
                progress.update(batch.num_samples)
                self.watchdog.beat()
            progress.close()
            return evaluation.compute(totals)

    def _rank_pairs(
        self, split: Split, reader: Reader, progress: Progress, skipped: Skipped
    ) -> Result:
        """`score` of pairwise tasks."""
        model = self.model.module
        with (
            self.watchdog.watch(f"the evaluation on {split}"),
            self._plain_model(),
            model.network.encoded_graph(model.tables, self.device),  # pyright: ignore
        ):
            known = {
                name: [self._known(s, progress)[name] for s in task.ranking.exclude if s != split]
                for name, task in self.job.tasks.items()
            }
            beat = self.watchdog.beat
            seed = self.job.train.seed
            retrieval = Retrieval(self.job.data_schema, model, self.device, seed, beat)
            for batch in reader.read(Position(), epochs=1):
                skipped.after_batch(batch.lost)
                retrieval.update(batch)
                progress.update(batch.num_samples)
                beat()
            progress.close()
            return retrieval.compute(known, self._own_pairs(progress))

    def _own_pairs(self, progress: Progress) -> dict[str, Tensor]:
        """What `own_pairs` finds in the events, read once."""
        if not any(task.ranking.own for task in self.job.tasks.values()):
            return {}
        return self._read_beside("events", own_pairs, progress)

    def _known(self, split: Split, progress: Progress) -> dict[str, Tensor]:
        """What `known_pairs` finds in a split, read once; nothing in one without files."""
        if not getattr(self.job.data, split):
            return {name: torch.empty(0, dtype=torch.int64) for name in self.job.tasks}
        return self._read_beside(split, known_pairs, progress)

    def _read_beside(
        self, split: Split, read: Callable[..., dict[str, Tensor]], progress: Progress
    ) -> dict[str, Tensor]:
        """What a function reads of a split besides the one that is scored, read once."""
        if split in self._found:
            return self._found[split]
        reader = open_reader(self.job, split, self.device, training=False)
        told = split in self.skipped
        skipped = Skipped(reader, (lambda _: None) if told else progress.say)
        self.skipped.setdefault(split, skipped)

        def after_batch(batch: Batch) -> None:
            skipped.after_batch(batch.lost)
            self.watchdog.beat()

        self._found[split] = read(self.job.data_schema, reader, after_batch)
        return self._found[split]

    @contextmanager
    def _plain_model(self) -> Iterator[torch.nn.Module]:
        """The model for evaluation."""
        with self.free_model() as model:
            model.eval()
            with torch.no_grad(), self.assignments.as_trained():
                yield model
            model.train()

    @contextmanager
    def free_model(self) -> Iterator[torch.nn.Module]:
        """The model free of the pipeline, which rewrites it while it trains.

        The pipeline keeps the batches it has already distributed. Attached with its default
        `sparse_dist=True` it would begin to distribute them again and lose what it knows of them.
        """
        pipeline = self.pipeline
        rewritten = isinstance(pipeline, TrainPipelineSparseDist)
        yield pipeline.detach() if rewritten else self.model
        if rewritten:
            pipeline.attach(sparse_dist=False)
