# SPDX-License-Identifier: Apache-2.0
"""Trains one job on this rank.

The core is TorchRec's own: a model sharded by DistributedModelParallel, driven by a training
pipeline. Around it stand evaluation, checkpoints and what a person sees.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

import deltarec_kernels
from deltarec import config as configuration
from deltarec.assembly import build_model, open_reader, subgraph_sampler
from deltarec.balancing.balancer import Balancer, global_losses
from deltarec.checkpoint import Checkpoints, TrainState
from deltarec.conflict_plot import draw_conflicts
from deltarec.data.batch import Batch
from deltarec.data.subgraphs import SubgraphSampler
from deltarec.distributed import all_sum, is_main, rank, world_size
from deltarec.embeddings.assignment import Assignments
from deltarec.embeddings.code_statistics import code_statistics, saturation_warning
from deltarec.embeddings.fresh_rows import FreshRows
from deltarec.embeddings.quantised_collections import quantised_tables
from deltarec.embeddings.second_pass import SecondPass, buffers_kept
from deltarec.evaluator import Evaluator
from deltarec.job import Job
from deltarec.metrics import larger_is_better
from deltarec.metrics.table import overall, render
from deltarec.optimizers import StepOptimizer
from deltarec.progress import Progress
from deltarec.resuming import require_same_job
from deltarec.run_folder import RunFolder
from deltarec.skipped import Skipped
from deltarec.summary import all_counts, embedding_bytes, peak_memory_bytes, versions
from deltarec.supervision import NotFinite, Supervision, Terminated, Watchdog
from deltarec.warm_start import warm_start


class Trainer:
    """One job on this rank.

    Args:
        job: the whole configuration.
        run: where to write; a checkpoint found there is resumed by `fit`.
        device: of this rank.
    """

    def __init__(self, job: Job, run: RunFolder, device: torch.device) -> None:
        self.job = job
        self.run = run
        self.device = device
        self.schema = job.data_schema
        torch.use_deterministic_algorithms(job.train.deterministic)
        self.num_steps = self._open()
        self.model, self.plan, self.events = build_model(job, device)
        self.balancer: Balancer = self.model.module.balancer  # pyright: ignore
        self.balancer.begin(self.num_steps)
        self.optimizer = StepOptimizer(job.train.optimizer, self.model, self.num_steps)
        self.watchdog = Watchdog(job.train.hang_seconds)
        self.checkpoints = Checkpoints(
            run.checkpoints,
            self.model,
            self.optimizer,
            job.train.checkpoint,
            self.watchdog,
            self._kept_beside(),
        )
        self.assignments: Assignments = self.model.module.assignments  # pyright: ignore
        self.subgraphs = subgraph_sampler(job, self.model.module.network)  # pyright: ignore
        assigned = {name: owned.table for name, owned in self.assignments.owned.items()}
        self.network: Any = self.model.module.network
        self.fresh_rows = FreshRows(
            self.model,
            assigned,
            job.train.seed,
            self.checkpoints.snapshots.before_write,
        )
        self.model.register_forward_pre_hook(lambda _, inputs: self.fresh_rows(inputs[0]))
        kind = TrainPipelineSparseDist if job.train.pipeline == "sparse_dist" else TrainPipelineBase
        self.pipeline = kind(self.model, self.optimizer, device)  # pyright: ignore
        self.quantised = {
            name: table
            for name, table in job.embedding.resolved().items()
            if table.quantisation is not None
        }
        two_passes = any(t.quantisation.two_passes for t in self.quantised.values())  # pyright: ignore
        self.second_pass = SecondPass(self.model) if two_passes else None
        self.saturated: set[str] = set()
        self.state = TrainState()
        self.invalid: Counter[str] = Counter()
        """Values mended by each policy on this rank, besides those that the state has."""
        self._started = 0.0
        """When training began, had it not been interrupted, in seconds of `time.monotonic`."""
        self.evaluator = Evaluator(job, self.model, self.pipeline, self.watchdog, device)
        self.skipped = self.evaluator.skipped
        if self.events is not None:
            self.skipped["events"] = self.events

    def fit(self) -> dict[str, Any]:
        """Train to the end, from the latest checkpoint if there is one; returns result.json."""
        with self.watchdog.watch("training"):
            return self._fit()

    def _fit(self) -> dict[str, Any]:
        progress = Progress("train", self._total_samples())
        if self._begin(progress.say):
            self._require_same_data()
        progress.start_from(self.state.samples)
        batches = self._batches(self.job.train.epochs, progress)
        stop = self.state.step >= self.num_steps or self._stopped_early()
        with self._profiler() as profiler, self._supervision() as supervision:
            if self.state.evaluation_due:
                self.state = replace(self.state, evaluation_due=False)
                stop = self._evaluate_and_save(progress) or stop
                self._restart_clock()
            while not stop:
                losses = self._advance(batches, progress)
                told_to_end = supervision.after_step(self.state.step, losses)
                stop = self.state.step == self.num_steps
                evaluation_due = stop or self._evaluation_is_due()
                if told_to_end:
                    self.state = replace(self.state, evaluation_due=evaluation_due)
                    self._save_and_end(supervision)
                elif evaluation_due:
                    supervision.check_now()
                    stop = self._evaluate_and_save(progress) or stop
                    self._restart_clock()
                elif self._checkpoint_is_due():
                    supervision.check_now()
                    self._save()
                if profiler is not None:
                    profiler.step()
        batches.close()
        progress.close()
        return self._finish(progress)

    def _open(self) -> int:
        """Make what the training data are read by; returns the number of steps of the job."""
        self.reader = open_reader(self.job, "train", self.device)
        steps = self.reader.num_steps * self.job.train.epochs
        return min(steps, self.job.train.max_steps or steps)

    def _kept_beside(self) -> dict[str, Tensor]:
        """Tensors of a subclass that belong to its state."""
        return {}

    def _begin(self, say: Callable[[str], None]) -> bool:
        """Put everything where the latest checkpoint left it; returns whether there is one."""
        latest = self.checkpoints.find("latest")
        if latest:
            require_same_job(self.run.path, self.job)
            self.state = self.checkpoints.load("latest")
            say(f"goes on from {latest}")
        self.run.write("config.yaml", configuration.dump(self.job))
        self.run.write("plan.txt", self.plan)
        self.run.rewind(self.state.step, self.state.scored)
        if self.quantised:
            say(deltarec_kernels.describe())
        if self.job.train.warm_start and not latest:
            say(warm_start(self.job.train.warm_start, self.model, self.optimizer, self.watchdog))
        self._restart_clock()
        self.model.train()
        return latest is not None

    def _require_same_data(self) -> None:
        mend = "give back its files and settings, or train into a new run folder"
        self.reader.require(self.state.data, "the checkpoint to resume", mend)
        if self.events is not None:
            whose, what = "the checkpoint to resume", "the graph's data (data.events)"
            self.events.reader.require(self.state.events, whose, mend, what)

    def _restart_clock(self) -> None:
        """Count no time since the last step as training."""
        self._started = time.monotonic() - self.state.seconds

    def _batches(self, epochs: int, progress: Progress) -> "_Batches":
        """The reader's batches from the state's position on."""
        self.pipeline.reset()  # the plain one does not begin again by itself
        events = self.events.reader.identity if self.events is not None else {}
        self.state = replace(self.state, data=self.reader.identity, events=events)
        self.skipped["train"] = Skipped(
            self.reader, progress.say, self.state.skipped_files, self.state.skipped_rows
        )
        return _Batches(
            self.reader.read(self.state.position, epochs), self.assignments, self.subgraphs
        )

    def _advance(self, batches: "_Batches", progress: Progress) -> Tensor:
        """One step, and what is told of it; returns this rank's share of the losses `[T]`."""
        losses = self._train_step(batches)
        self.checkpoints.after_step()
        batch, skipped = batches.trained(), self.skipped["train"]
        lost = skipped.after_batch(batch.lost)
        self.invalid.update(batch.invalid)
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            samples=self.state.samples + batch.num_samples - lost,
            skipped_rows=skipped.rows,
            skipped_files=sorted(skipped.files),
            seconds=time.monotonic() - self._started,
            position=batch.next,
        )
        if batch.next.samples == 0:
            self.balancer.after_epoch()
        self._log_step(progress, batch.num_samples, losses)
        return losses

    def _train_step(self, batches: "_Batches") -> Tensor:
        """One batch: forward, backward, update. Returns this rank's share of the losses `[T]`."""
        self.balancer.is_logged = self._is_logged(self.state.step + 1)
        losses, logits = self.pipeline.progress(batches)
        if self.assignments.agent is not None:
            self.assignments.agent.observe(batches.in_training, logits, self.network.observed)
        if self.second_pass is not None:
            self.second_pass(batches.in_training.to(self.device))
        if self.balancer.looks_again:
            self._look_again(batches.in_training)
        return losses

    def _look_again(self, batch: Batch) -> None:
        """Show the balancing method a batch's losses after its update; nothing else sees them."""
        batch = replace(batch, fresh={}).to(self.device)  # its new rows have begun to learn
        with self.evaluator.free_model() as model, buffers_kept(self.network), torch.no_grad():
            _, (losses, _) = model(batch)
        self.balancer.after_update(global_losses(losses))

    def _total_samples(self) -> int:
        return min(
            self.reader.num_samples * self.job.train.epochs,
            self.num_steps * self.job.train.batch_size,
        )

    def _is_logged(self, step: int) -> bool:
        return step % self.job.train.log_every == 0 or step == self.num_steps

    def _log_step(self, progress: Progress, num_samples: int, losses: Tensor) -> None:
        if not self._is_logged(self.state.step):
            progress.update(num_samples)
            return
        mean = all_sum(losses) / world_size()
        values = dict(zip(self.job.losses, mean.tolist(), strict=True))
        progress.update(num_samples, " ".join(f"{k} {v:.4f}" for k, v in values.items()))
        logged = {f"loss/{name}": value for name, value in values.items()}
        logged["learning_rate"] = self.optimizer.rates()[-1]
        logged["samples_per_second"] = progress.samples_per_second
        logged |= self.balancer.logged()
        logged |= self.skipped["train"].logged()
        logged |= self._log_codes(progress)
        logged |= self.assignments.logged()
        self.run.log(self.state.step, "train", logged)

    def _log_codes(self, progress: Progress) -> dict[str, float]:
        """How quantised tables fare; warns once of each that saturates."""
        if not self.quantised:
            return {}
        logged = {}
        found = code_statistics(quantised_tables(self.model), self.quantised)
        for name, statistics in found.items():
            logged |= statistics.logged(name)
            warning = saturation_warning(self.quantised[name], statistics)
            if warning and name not in self.saturated:
                self.saturated.add(name)
                progress.say(warning)
        return logged

    @contextmanager
    def _supervision(self) -> Iterator[Supervision]:
        try:
            with Supervision(self.job.losses, self.watchdog) as supervision:
                yield supervision
        except NotFinite as error:
            first = error
            try:
                self.checkpoints.wait()
            except NotFinite as earlier:  # of the step whose checkpoint was under way
                first = earlier
            last = self.checkpoints.find("latest")
            mend = "there is no checkpoint yet"
            if last:
                mend = (
                    f"the last checkpoint, all of it finite, is {last}; if a run from there ends "
                    "in the same way, let 'latest' name an earlier one"
                )
            raise ValueError(f"{first}; {mend}") from None

    def _save_and_end(self, supervision: Supervision) -> None:
        supervision.check_now()
        self._count_invalid()
        self.checkpoints.save(self.state, training_goes_on=False)
        self.checkpoints.wait()
        raise Terminated(f"told to end; step {self.state.step} is saved in {self.run.path}")

    def _evaluation_is_due(self) -> bool:
        every = self.job.train.evaluate_every
        if every is None:
            return self.state.position.samples == 0
        return self.state.step % every == 0

    def _checkpoint_is_due(self) -> bool:
        every = self.job.train.checkpoint.every
        return every is not None and self.state.step % every == 0

    def _save(self, best: bool = False) -> None:
        goes_on = self.state.step < self.num_steps
        self._count_invalid()
        self.checkpoints.save(self.state, best=best, training_goes_on=goes_on)

    def _count_invalid(self) -> None:
        """Put what all ranks have counted into the state; a collective."""
        invalid = Counter(self.state.invalid) + Counter(all_counts(self.invalid))
        self.state = replace(self.state, invalid=dict(sorted(invalid.items())))
        self.invalid.clear()

    def _evaluate_and_save(self, progress: Progress) -> bool:
        """Evaluate on the validation data, save; returns whether training should stop early."""
        if not self.job.data.valid:
            self._save()
            return False
        result = self.evaluator.evaluate("valid")
        self.run.log(self.state.step, "valid", result | self.skipped["valid"].logged())
        progress.say(f"step {self.state.step}, validation\n{render(overall(result))}")
        stopping = self.job.train.early_stopping
        if stopping is None:
            self._save()
            return False
        tasks = self.job.early_stopping_tasks
        values: list[float] = []
        for task in tasks:
            found = result[task]["all"].get(stopping.metric)
            if found is None:
                raise ValueError(
                    f"train.early_stopping.metric: '{stopping.metric}' of task '{task}' is not "
                    "defined on the validation data"
                )
            values.append(found)
        value = fmean(values)
        best = self.state.best_value
        sign = 1 if larger_is_better(stopping.metric) else -1
        if best is None or sign * value > sign * best:
            self.state = replace(self.state, best_value=value, evaluations_since_best=0)
            self._save(best=True)
            return False
        since = self.state.evaluations_since_best + 1
        self.state = replace(self.state, evaluations_since_best=since)
        self._save()
        if self._stopped_early():
            what = f"{stopping.metric} of {', '.join(tasks)}"
            progress.say(f"stopped early: {what} was best at {best:.6f}")
        return self._stopped_early()

    def _stopped_early(self) -> bool:
        stopping = self.job.train.early_stopping
        return stopping is not None and self.state.evaluations_since_best >= stopping.patience

    def _finish(self, progress: Progress) -> dict[str, Any]:
        self.checkpoints.wait()
        self._count_invalid()
        measured = self.state.step
        if self.checkpoints.find("best"):
            measured = self.checkpoints.load("best").step
        result: dict[str, Any] = {
            "steps": self.state.step,
            "samples": self.state.samples,
            "invalid": self.state.invalid,
            "seconds": round(self.state.seconds, 3),
            "samples_per_second": round(self.state.samples / max(self.state.seconds, 1e-9), 1),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "embedding_bytes": embedding_bytes(self.model),
        }
        for split in ("valid", "test"):
            if getattr(self.job.data, split):
                result[split] = self.evaluator.evaluate(split)
        result |= self._own_results()
        if "test" in result:
            self.run.log(measured, "test", result["test"] | self.skipped["test"].logged())
        result["skipped"] = {split: skipped.summary() for split, skipped in self.skipped.items()}
        result["versions"] = versions()
        result["config_sha256"] = configuration.fingerprint(self.job)
        self.run.write("result.json", json.dumps(result, indent=2) + "\n")
        self.run.close()
        if is_main():
            draw_conflicts(self.run.path, progress.say)
        return result

    def _own_results(self) -> dict[str, Any]:
        """What a subclass adds to result.json."""
        return {}

    def _profiler(self) -> Any:
        profile = self.job.train.profile
        if profile is None:
            return nullcontext()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        trace = self.run.path / f"trace_rank{rank()}.json"
        return torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(
                wait=max(profile.start - 1, 0), warmup=1, active=profile.steps, repeat=1
            ),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(trace)),
        )


class _Batches(Iterator[Batch]):
    """The reader's batches with their rows or sub-graphs.

    It remembers those that the pipeline has not yet trained.
    """

    def __init__(
        self,
        source: Iterator[Batch],
        assignments: Assignments,
        subgraphs: SubgraphSampler | None = None,
    ) -> None:
        self.source = source
        self.assignments = assignments
        self.subgraphs = subgraphs
        self.held: deque[Batch] = deque()

    def __next__(self) -> Batch:
        batch = self.assignments.assign(next(self.source))
        if self.subgraphs is not None:
            batch = self.subgraphs.draw(batch)
        self.held.append(batch)
        return batch

    @property
    def in_training(self) -> Batch:
        """The one that the pipeline's latest step has trained."""
        return self.held[0]

    def trained(self) -> Batch:
        """That one, for the last time."""
        self.assignments.trained()
        return self.held.popleft()

    def close(self) -> None:
        self.source.close()  # pyright: ignore[reportAttributeAccessIssue]
