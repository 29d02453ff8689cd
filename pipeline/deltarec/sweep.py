# SPDX-License-Identifier: Apache-2.0
"""Trains variants of a job over seeds, side by side, and compares them.

Each run is `deltarec train` in processes of its own, on a configuration that is written out in full
into its run folder; so a run that crashes harms no other, and any of them can be repeated by hand.
What is finished is known by its result.json alone: the same command goes on where it was stopped.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from deltarec import config as configuration
from deltarec.assembly import check
from deltarec.comparison import Comparison, Key, flatten
from deltarec.comparison_plot import MISSING, can_draw, draw
from deltarec.grid import Variant
from deltarec.job import Job
from deltarec.supervision import sigterm_exits

POLL_SECONDS = 0.1
LOG = "train.log"


@dataclass(frozen=True)
class Run:
    """A variant at one seed, and its folder `SWEEP/VARIANT/seed-S`."""

    variant: Variant
    seed: int
    job: Job
    path: Path

    @property
    def name(self) -> str:
        return f"{self.variant.label}, seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """result.json, if the run is finished.

        Raises:
            ValueError: the folder has a run of another configuration.
        """
        saved = self.path / "config.yaml"
        if not saved.is_file():
            return None
        mend = "give another --run-dir, or remove that folder"
        there = configuration.load(Job, saved)
        if there != self.job:
            why = configuration.describe(configuration.differences(there, self.job))
            raise ValueError(f"{self.path} has a run of another configuration ({why}); {mend}")
        file = self.path / "result.json"
        if not file.is_file():
            return None
        result = json.loads(file.read_text())
        if result["config_sha256"] != hashlib.sha256(saved.read_bytes()).hexdigest():
            raise ValueError(f"{file} is not of the config.yaml beside it; {mend}")
        return result


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do, checked.

    Args:
        runs: by seed, then by variant: all variants can be compared early.
        refused: reason by the label of variants that cannot be.
        split: that decides, test or valid.
        metric: likewise.
    """

    runs: Sequence[Run]
    refused: Mapping[str, str]
    split: str
    metric: Key


@dataclass
class Launcher:
    """Starts runs as processes on this machine.

    Args:
        num_parallel: runs at a time.
        nproc: processes of a run.
        threads: of a process.
        devices: names of the machine's GPUs; none on CPU.
    """

    num_parallel: int
    nproc: int
    threads: int
    devices: Sequence[str] = ()

    @classmethod
    def here(cls, num_parallel: int, nproc: int) -> "Launcher":
        """The machine's cores and GPUs, divided among all processes at work at a time.

        Raises:
            ValueError: there are fewer GPUs than processes.
        """
        threads = max(1, len(os.sched_getaffinity(0)) // (num_parallel * nproc))
        count = torch.cuda.device_count()
        if 0 < count < num_parallel * nproc:
            raise ValueError(
                f"--jobs {num_parallel} of {nproc} processes need {num_parallel * nproc} GPUs, and "
                f"there are {count}: give fewer"
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(count)]
        return cls(num_parallel, nproc, threads, names if count else ())

    def environment(self, slot: int) -> dict[str, str]:
        """Of the processes in one of the `num_parallel` places."""
        found = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if self.devices:
            own = self.devices[slot * self.nproc : (slot + 1) * self.nproc]
            found["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return found

    def command(self, run: Run) -> list[str]:
        """What trains a run, as a user would type it."""
        words = [sys.executable, "-m", "deltarec.cli", "train"]
        words += ["--config", str(run.path / "config.yaml"), "--run-dir", str(run.path)]
        words += ["--threads", str(self.threads)]
        return words + (["--nproc", str(self.nproc)] if self.nproc > 1 else [])


def plan(
    variants: Sequence[Variant],
    num_seeds: int,
    folder: Path,
    nproc: int,
    metric: str | None,
    skip_refused: bool,
) -> Plan:
    """Check every configuration before anything runs.

    Args:
        variants: to compare.
        num_seeds: runs of each; seeds count from the first variant's `train.seed`.
        folder: of the sweep.
        nproc: processes of a run.
        metric: that decides, `TASK/METRIC`; as in early stopping, or the first task's first one, if
            not given.
        skip_refused: leave impossible variants out, instead of refusing the sweep.

    Raises:
        ValueError: with a line for each variant that is not valid; or no variant measures the
            metric, or the folder has other runs.
    """
    runs: list[Run] = []
    refused: dict[str, str] = {}
    first_seed = None
    for variant in variants:
        try:
            if first_seed is None:
                first_seed = _load(variant).train.seed
            jobs = [_load(variant, seed) for seed in range(first_seed, first_seed + num_seeds)]
            jobs[0].data.reader.check(nproc)
            check(jobs[0])
        except ValueError as error:
            refused[variant.label] = str(error)
            continue
        runs += [
            Run(variant, job.train.seed, job, folder / variant.folder / f"seed-{job.train.seed}")
            for job in jobs
        ]
    if refused and not skip_refused:
        lines = [f"{label}: {line}" for label, why in refused.items() for line in why.splitlines()]
        raise ValueError("\n".join([*lines, "to leave such variants out, add --skip-refused"]))
    if not runs:
        raise ValueError("no variant is possible: " + "; ".join(refused.values()))
    for run in runs:
        run.result()
    ordered = sorted(runs, key=lambda run: run.seed)
    return Plan(ordered, refused, *_decides([run.job for run in runs], metric))


def run_sweep(
    plan: Plan,
    folder: Path,
    baselines: Mapping[str, str | None],
    launcher: Launcher,
    keep_checkpoints: bool,
    say: Callable[[str], None],
) -> Comparison:
    """Do all runs that are not done; returns what they have measured.

    Args:
        plan: the runs.
        folder: of the sweep; has table.md, table.csv, sweep.json and plot.png from the first
            finished run on.
        baselines: whom each variant is compared with, by label.
        launcher: starts them.
        keep_checkpoints: keep those of runs that finish now.
        say: takes lines of progress.

    Raises:
        ValueError: another sweep is at work in this folder.
        SystemExit: by SIGTERM; the runs have saved.
    """
    comparison = Comparison(folder.name, plan.split, plan.metric, baselines)
    comparison.unfinished = {label: {None: why} for label, why in plan.refused.items()}
    waiting = []
    for run in plan.runs:
        if not _record(comparison, run, "not trained yet"):
            waiting.append(run)
    total, done = len(plan.runs), len(plan.runs) - len(waiting)
    say(
        f"{total} runs of {len(baselines)} variants in {folder}" + f", {done} are done" * (done > 0)
    )
    if not can_draw():
        say(MISSING)
    started = time.monotonic()
    with (
        _only_one(folder) as lock,
        sigterm_exits(),
        closing(_train(waiting, launcher, lock)) as ended,
    ):
        _write(comparison, folder)
        for count, (run, code) in enumerate(ended, start=1):
            if _record(comparison, run, _failure(run, code)):
                outcome = _value(comparison, run)
                if not keep_checkpoints:
                    shutil.rmtree(run.path / "checkpoints")
            else:
                outcome = _failure(run, code)
            _write(comparison, folder)
            minutes = (time.monotonic() - started) / count * (len(waiting) - count) / 60
            left = f", about {minutes:.0f} min left" if minutes > 1 else ""
            say(f"{done + count} of {total} done, {outcome} ({run.name}){left}")
    return comparison


def compare(runs: Sequence[str], baseline: str | None, metric: str | None) -> Comparison:
    """Put finished runs beside each other.

    Args:
        runs: `LABEL=FOLDER`; those of one label are one variant, at several seeds.
        baseline: the label that others are compared with; the first if not given.
        metric: `TASK/METRIC` that decides; as in early stopping if not given.

    Raises:
        ValueError: a run is not finished, or they cannot be compared.
    """
    found: list[Run] = []
    for text in runs:
        label, separator, folder = text.partition("=")
        if not separator or not label or not folder:
            raise ValueError(f"{text}: expected LABEL=FOLDER")
        saved = Path(folder, "config.yaml")
        job = configuration.load(Job, saved)
        run = Run(Variant(label, saved, (), {}), job.train.seed, job, Path(folder))
        if any((run.variant.label, run.seed) == (o.variant.label, o.seed) for o in found):
            raise ValueError(f"{text}: '{label}' has a run of seed {run.seed} already")
        found.append(run)
    labels = list(dict.fromkeys(run.variant.label for run in found))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"--baseline {baseline}: one of {', '.join(labels)}")
    split, key = _decides([run.job for run in found], metric)
    comparison = Comparison("comparison", split, key, dict.fromkeys(labels, baseline or labels[0]))
    for run in found:
        if not _record(comparison, run, "is not finished"):
            raise ValueError(f"{run.path}: the run is not finished; there is no result.json")
    return comparison


def _train(waiting: Sequence[Run], launcher: Launcher, lock: IO[str]) -> Generator[tuple[Run, int]]:
    """Train runs, several at a time; yields each as it ends, with its exit code."""
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    queue = list(waiting)
    try:
        while queue or running:
            for slot in sorted(set(range(launcher.num_parallel)) - running.keys()):
                if queue:
                    run = queue.pop(0)
                    running[slot] = run, _start(run, launcher, slot, lock)
            time.sleep(POLL_SECONDS)
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    yield run, process.returncode
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def _start(run: Run, launcher: Launcher, slot: int, lock: IO[str]) -> "subprocess.Popen[bytes]":
    run.path.mkdir(parents=True, exist_ok=True)
    _replace(run.path / "config.yaml", configuration.dump(run.job))
    with (run.path / LOG).open("ab") as log:
        # A session of its own: Ctrl-C is for the sweep, which then lets its runs save. And the
        # lock is theirs too: if the sweep is killed, no other begins before they have ended.
        return subprocess.Popen(
            launcher.command(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=launcher.environment(slot),
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def _record(comparison: Comparison, run: Run, otherwise: str) -> bool:
    """Enter a run's result, or why there is none; returns whether there is one."""
    result, label = run.result(), run.variant.label
    reasons = comparison.unfinished.setdefault(label, {})
    if result is None:
        reasons[run.seed] = otherwise
    else:
        reasons.pop(run.seed, None)
        comparison.runs.setdefault(label, {})[run.seed] = flatten(result, comparison.split)
    return result is not None


def _failure(run: Run, code: int) -> str:
    """The exit code, and the last line of the log: of ours, if there is one."""
    lines = [line.strip() for line in (run.path / LOG).read_text(errors="replace").splitlines()]
    own = [line for line in lines if line.startswith("deltarec")]
    last = (own or [line for line in lines if line] or ["it said nothing"])[-1]
    return f"failed with exit code {code}: {last}"


def _value(comparison: Comparison, run: Run) -> str:
    value = comparison.runs[run.variant.label][run.seed].get(comparison.metric)
    name = f"{comparison.metric.task}/{comparison.metric.metric}"
    return f"{name} {'undefined' if value is None else format(value, '.4f')}"


def _write(comparison: Comparison, folder: Path) -> None:
    _replace(folder / "table.md", comparison.markdown())
    _replace(folder / "table.csv", comparison.csv())
    _replace(folder / "sweep.json", json.dumps(comparison.plain(), indent=2) + "\n")
    if comparison.labels and can_draw():
        draw(comparison, folder / "plot.png")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def _only_one(folder: Path) -> Iterator[IO[str]]:
    """The folder's lock, an open file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another sweep, or a run that it has left, is at work here; wait for it"
            ) from None
        yield lock


def _load(variant: Variant, seed: int | None = None) -> Job:
    own = () if seed is None else (f"train.seed={seed}",)
    return configuration.load(Job, variant.config, [*variant.overrides, *own])


def _decides(jobs: Sequence[Job], text: str | None) -> tuple[str, Key]:
    """The split that every job measures, and the metric, which some measure."""
    split = next((s for s in ("test", "valid") if all(getattr(job.data, s) for job in jobs)), None)
    if all(job.stream for job in jobs):
        split = "stream"
    if split is None:
        raise ValueError("nothing to compare by: set data.test, or data.valid, of every variant")
    if text is None:
        stopping = jobs[0].train.early_stopping
        task = next(iter(jobs[0].early_stopping_tasks or jobs[0].measured))
        text = f"{task}/{stopping.metric if stopping else jobs[0].metrics(task)[0]}"
    task, _, metric = text.partition("/")
    known = dict.fromkeys(f"{t}/{m}" for job in jobs for t in job.measured for m in job.metrics(t))
    if f"{task}/{metric}" not in known:  # models of one task stand beside those of several
        raise ValueError(f"--metric {text}: expected one of {', '.join(known)}")
    return split, Key(task, "all", metric)
