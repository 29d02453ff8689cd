# SPDX-License-Identifier: Apache-2.0
"""Trains on a stream of partitions, testing on each before it is trained on.

The partitions of `data/partitions.py` come one after the other. Each is first scored by the model
as the partitions before have left it (*prequential* evaluation), then trained on once, then a
checkpoint is written that says which partitions are done. So whenever the job is killed, the next
one begins with the first partition that is not, or inside it where a checkpoint was written there.
A partition takes the place of an epoch: its number keys the shuffle and everything else that is
drawn.

While it watches (`train --watch`), the job waits for the next partition to become whole. The main
rank looks, and tells the others.
"""

import math
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.assembly import open_reader
from deltarec.data.files import listing
from deltarec.data.partitions import StreamConfig, following, partitions
from deltarec.distributed import is_main
from deltarec.evaluator import evaluation_of
from deltarec.job import Job
from deltarec.metrics.table import overall, render
from deltarec.metrics.totals import Totals
from deltarec.progress import Progress
from deltarec.run_folder import RunFolder
from deltarec.skipped import Skipped
from deltarec.supervision import Supervision, Terminated
from deltarec.trainer import Trainer

LOOK_SECONDS = 0.5
"""While it waits, a job looks so often whether it was told to end."""


class StreamTrainer(Trainer):
    """One job on a stream, on this rank.

    Args:
        job: the whole configuration.
        run: where to write; a checkpoint found there is resumed by `fit`.
        device: of this rank.
        watch: whether to wait for partitions that are not there yet.
    """

    def __init__(self, job: Job, run: RunFolder, device: torch.device, watch: bool = False) -> None:
        assert job.stream is not None
        self.stream: StreamConfig = job.stream
        self.watch = watch
        super().__init__(job, run, device)

    def _open(self) -> int:
        self.totals = Totals(evaluation_of(self.job))
        return self.job.train.max_steps or sys.maxsize

    def _kept_beside(self) -> dict[str, Tensor]:
        return self.totals.tensors

    def _fit(self) -> dict[str, Any]:
        progress = Progress("stream", 0)
        self._begin(progress.say)
        with self._profiler() as profiler, self._supervision() as supervision:
            while self.state.step < self.num_steps:
                name = self._next(supervision, progress)
                if name is None:
                    break
                if any(file.metadata.num_rows for file in self.job.data.files("train", {}, name)):
                    self._score(name, progress)
                    self._train(name, supervision, profiler)
                else:
                    self._note_done(name)
                    self._save()
        return self._finish(progress)

    def _score(self, name: str, progress: Progress) -> None:
        """Test the model on a partition, unless it has been or belongs to the warm-up."""
        if self.state.scored or len(self.state.partitions) < self.stream.warmup:
            return
        reader = open_reader(self.job, "train", self.device, training=False, partition=name)
        own = Progress(f"score {name}", reader.num_samples)
        untold = Skipped(reader, lambda _: None)  # training on it tells
        result = self.evaluator.score(name, reader, own, untold, self.totals)
        self.run.log(self.state.step, "partition", {**result}, name)
        self.run.log(self.state.step, "stream", {**self.totals.compute()}, name)
        progress.say(f"{name}, before it is trained on\n{render(overall(result))}")
        self.state = replace(self.state, scored=True)

    def _train(self, name: str, supervision: Supervision, profiler: Any) -> None:
        """Train on a partition once, from the state's position on, and save."""
        self.reader = open_reader(self.job, "train", self.device, partition=name)
        if self.state.partition == name:
            self._require_same_data()
        self.state = replace(self.state, partition=name)
        epoch, samples = self.state.position.epoch, self.state.position.samples
        progress = Progress(f"train {name}", self.reader.num_samples, samples)
        batches = self._batches(epoch + 1, progress)
        self._restart_clock()
        while self.state.position.epoch == epoch and self.state.step < self.num_steps:
            losses = self._advance(batches, progress)
            if self.state.position.epoch > epoch:
                self.assignments.after_partition(self.fresh_rows.norms)
                self._note_done(name)
            if supervision.after_step(self.state.step, losses):
                self._save_and_end(supervision)
            if (
                self.state.partition is None
                or self.state.step == self.num_steps
                or self._checkpoint_is_due()
            ):
                supervision.check_now()
                self._save()
            if profiler is not None:
                profiler.step()
        batches.close()
        progress.close()

    def _note_done(self, name: str) -> None:
        done = [*self.state.partitions, name]
        self.state = replace(self.state, partitions=done, partition=None, scored=False)

    def _next(self, supervision: Supervision, progress: Progress) -> str | None:
        """The next partition, waiting for it if told to watch; None at the end of the stream.

        Raises:
            Terminated: the job was told to end while it waited.
            ValueError: there is no partition at all, or one is late or gone.
        """
        since, told = time.monotonic(), False
        while True:
            answer: list[Any] = [self._look(since) if is_main() else None]
            dist.broadcast_object_list(answer)
            found: _Found = answer[0]
            if found.error is not None:
                raise ValueError(found.error)
            if found.name is not None or found.ended:
                if found.note:
                    progress.say(found.note)
                return found.name
            self.checkpoints.wait()  # there may be no step for long
            if not told:
                progress.say("waits for the next partition")
                told = True
            for _ in range(math.ceil(self.stream.poll_seconds / LOOK_SECONDS)):
                time.sleep(min(LOOK_SECONDS, self.stream.poll_seconds))
                if supervision.told_to_end():
                    raise Terminated(f"told to end; {self.run.path} has every partition so far")

    def _look(self, since: float) -> "_Found":
        """What there is, on the main rank.

        Args:
            since: when it began to wait, in seconds of `time.monotonic`.
        """
        try:
            return self._find(since)
        except ValueError as error:  # for all ranks to raise
            return _Found(error=str(error))

    def _find(self, since: float) -> "_Found":
        data, stream, done = self.job.data, self.stream, self.state.partitions
        source = data.root()
        # Before the partitions: one that becomes whole in between is still trained on.
        end_is_there = bool(listing(source, [stream.end]))
        found = partitions(source, data.train, stream.marker)
        if self.state.partition is not None:
            if self.state.partition not in (partition.name for partition in found):
                raise ValueError(
                    f"{source}/{self.state.partition}: the checkpoint to resume is in the middle "
                    "of this partition, which is gone; give it back, or let 'latest' name an "
                    "earlier checkpoint"
                )
            return _Found(self.state.partition)
        upcoming = following(found, set(done), stream)
        if upcoming is not None:
            return _Found(upcoming.name)
        if self.watch:
            idle = (
                stream.idle_seconds is not None and time.monotonic() - since > stream.idle_seconds
            )
            return _Found(ended=end_is_there or idle)
        if not done:
            raise ValueError(
                f"no partition of {', '.join(data.train)} under {source} is whole: each needs a "
                f"file {stream.marker} in its folder; or set stream.marker to null"
            )
        rest = [partition.name for partition in found if partition.name not in done]
        return _Found(ended=True, note=f"{rest[0]} is not whole: ends before it" if rest else None)

    def _own_results(self) -> dict[str, Any]:
        return {"stream": self.totals.compute(), "partitions": self.run.partitions()}


class _Found(NamedTuple):
    """What the main rank tells the others."""

    name: str | None = None
    """The partition to train on."""
    ended: bool = False
    """Whether there is to be no other."""
    note: str | None = None
    """For a person."""
    error: str | None = None
    """Why the job cannot go on."""


def trainer_of(job: Job, run: RunFolder, device: torch.device, watch: bool = False) -> Trainer:
    """What trains a job: one data set, or a stream."""
    return StreamTrainer(job, run, device, watch) if job.stream else Trainer(job, run, device)
