# SPDX-License-Identifier: Apache-2.0
"""What a training step costs under each policy of id assignment, the agent's learning included.

    deltarec bench agent
    deltarec bench agent --config configs/ml_latest_autoassign.yaml --partitions 4

Every policy trains the same partitions of the same stream, in tables of the same rows, in turns:
one partition by each policy, then the next one. Timed are the steps and what follows a partition
(the agent's learning, evictions); scoring and checkpoints are not. The first partition is left out.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from deltarec import config
from deltarec.assembly import open_reader
from deltarec.data.partitions import partitions
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.progress import Progress
from deltarec.run_folder import RunFolder
from deltarec.streaming import StreamTrainer

BASELINE = "lfu"


def job_of(options: argparse.Namespace, policy: str) -> Job:
    """The configuration's job with a policy for all tables that assign ids."""
    job = config.load(Job, options.config, options.set)
    changes = [
        f"embedding.tables.{name}.assignment={{policy: {policy}}}"
        for name, table in job.embedding.tables.items()
        if table.assignment is not None
    ]
    return config.load(Job, options.config, [*options.set, *changes])


def train(trainer: StreamTrainer, partition: str) -> float:
    """Train a partition; returns milliseconds a step."""
    trainer.reader = open_reader(trainer.job, "train", trainer.device, partition=partition)
    epoch, first = trainer.state.position.epoch, trainer.state.step
    batches = trainer._batches(epoch + 1, Progress("", 0))
    start = time.perf_counter()
    while trainer.state.position.epoch == epoch:
        trainer._advance(batches, Progress("", 0))
    trainer.assignments.after_partition(trainer.fresh_rows.norms)
    seconds = time.perf_counter() - start
    batches.close()
    return 1e3 * seconds / (trainer.state.step - first)


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench agent", description=__doc__)
    parser.add_argument("--config", default="configs/synth_stream_autoassign.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--policies", nargs="+", default=["lfu", "lru", "autoassign"])
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    with process_group(threads=1) as device, tempfile.TemporaryDirectory() as folder:
        jobs = {policy: job_of(options, policy) for policy in options.policies}
        trainers = {
            policy: StreamTrainer(job, RunFolder(Path(folder, policy)), device)
            for policy, job in jobs.items()
        }
        data = next(iter(jobs.values())).data
        names = [part.name for part in partitions(data.root(), data.train, "_SUCCESS")]
        times: dict[str, list[float]] = {policy: [] for policy in trainers}
        for name in names[: options.partitions + 1]:
            for policy, trainer in trainers.items():
                times[policy].append(train(trainer, name))
    results = {policy: statistics.median(found[1:]) for policy, found in times.items()}
    for policy, milliseconds in results.items():
        ratio = milliseconds / results.get(BASELINE, milliseconds)
        print(f"{policy:12} {milliseconds:8.2f} ms a step  {ratio:.2f} x {BASELINE}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
