# SPDX-License-Identifier: Apache-2.0
"""`deltarec train`."""

import argparse
from pathlib import Path

from deltarec.verbs.processes import launch
from deltarec.verbs.verb import (
    JOB,
    Answer,
    Ended,
    Parser,
    Verb,
    add_configuration,
    add_processes,
)


def _arguments(parser: Parser) -> None:
    add_configuration(parser)
    parser.add_argument("--run-dir", type=Path, help="run folder; runs/NAME-TIME if not given")
    parser.add_argument(
        "--watch", action="store_true", help="of a stream: wait for partitions to come"
    )
    add_processes(parser)


def _run(options: argparse.Namespace) -> Answer | None:
    from deltarec.assembly import check
    from deltarec.config import load
    from deltarec.job import Job

    job = load(Job, options.config, options.set)
    if options.watch and job.stream is None:
        raise ValueError("--watch: is for streams; add a section 'stream' to the configuration")
    check(job)
    if options.nproc is not None:
        job.data.reader.check(options.nproc)
        return launch(options)
    from deltarec.distributed import is_main, process_group
    from deltarec.run_folder import RunFolder
    from deltarec.streaming import trainer_of
    from deltarec.summary import report
    from deltarec.supervision import TRY_AGAIN, Terminated

    with process_group(threads=options.threads) as device:
        run = RunFolder.create(options.run_dir, Path(options.config).stem)
        try:
            result = trainer_of(job, run, device, options.watch).fit()
        except Terminated as ended:
            message = f"{ended}; the same command resumes it"
            raise Ended(message if is_main() else "", TRY_AGAIN) from None
        if not is_main():
            return None
    answer = {"run_dir": str(run.path), **result}
    return Answer(answer, f"{report(result)}\nrun folder: {run.path}")


TRAIN = Verb(
    "Trains a job; resumes one whose run folder has a checkpoint.",
    _arguments,
    _run,
    "deltarec.summary:Trained",
    JOB,
)
