# SPDX-License-Identifier: Apache-2.0
"""`deltarec evaluate`."""

import argparse
from pathlib import Path

from deltarec.verbs.processes import launch
from deltarec.verbs.verb import Answer, Parser, Verb, add_overrides, add_processes


def _arguments(parser: Parser) -> None:
    parser.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test")
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="as at the end of training if not given: the best one where there is one",
    )
    add_overrides(parser)
    add_processes(parser)


def _run(options: argparse.Namespace) -> Answer | None:
    from deltarec.assembly import check
    from deltarec.checkpoint import chosen
    from deltarec.config import load
    from deltarec.job import Job

    saved = options.run_dir / "config.yaml"
    job = load(Job, saved, options.set)
    if not getattr(job.data, options.split):
        raise ValueError(f"{saved}: data.{options.split} names no files")
    chosen(options.run_dir / "checkpoints", options.checkpoint)
    check(job)
    if options.nproc is not None:
        job.data.reader.check(options.nproc)
        return launch(options)
    from deltarec.distributed import is_main, process_group
    from deltarec.metrics.table import render
    from deltarec.run_folder import RunFolder
    from deltarec.streaming import trainer_of

    with process_group(threads=options.threads) as device:
        trainer = trainer_of(job, RunFolder(options.run_dir), device)
        state = trainer.checkpoints.load(options.checkpoint)
        result = trainer.evaluator.evaluate(options.split)
        if not is_main():
            return None
    answer = {"step": state.step, "split": options.split, "metrics": result}
    answer["skipped"] = trainer.skipped[options.split].summary()
    return Answer(answer, f"{options.split}, step {state.step}\n{render(result)}")


EVALUATE = Verb(
    "Computes the metrics of a run's checkpoint.", _arguments, _run, "deltarec.evaluator:Evaluated"
)
