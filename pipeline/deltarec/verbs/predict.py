# SPDX-License-Identifier: Apache-2.0
"""`deltarec predict`."""

import argparse
from pathlib import Path

from deltarec.verbs.processes import launch
from deltarec.verbs.verb import Answer, Parser, Verb, add_overrides, add_processes, count


def _arguments(parser: Parser) -> None:
    parser.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    parser.add_argument(
        "--keys",
        nargs="+",
        required=True,
        metavar="COLUMN",
        help="columns that are copied beside the scores; of any type",
    )
    parser.add_argument(
        "--source", metavar="FOLDER", help="folder of the rows, or a URL; data.source if not given"
    )
    parser.add_argument(
        "--files",
        nargs="+",
        metavar="PATTERN",
        help="files, folders or globs there; all of --source, or else data.test, if not given",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        help="the best one where there is one if not given",
    )
    parser.add_argument(
        "--output",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="folder to write, new or with a part of these predictions; RUN/predictions if not "
        "given",
    )
    parser.add_argument(
        "--batch-size", type=count, default=4096, help="rows that a process scores at a time"
    )
    parser.add_argument(
        "--rows-per-part", type=count, help="rows of a file; follows from the input if not given"
    )
    add_overrides(parser)
    add_processes(parser)


def _run(options: argparse.Namespace) -> Answer | None:
    from deltarec.checkpoint import chosen
    from deltarec.config import load
    from deltarec.data.files import find
    from deltarec.data.scoring import Input
    from deltarec.job import Job

    saved = options.run_dir / "config.yaml"
    job = load(Job, saved, options.set)
    patterns = options.files or (["."] if options.source else job.data.test)
    if not patterns:
        raise ValueError(f"{saved}: data.test names no files; name some by --source or --files")
    folder = options.run_dir / "checkpoints"
    checkpoint = chosen(folder, options.checkpoint)
    mend = "mend it, or name the others by --files: every row gets a score"
    files = find(options.source or job.data.root(), patterns, mend=mend)
    source = Input(job.data_schema, files, options.keys, options.batch_size, options.rows_per_part)
    if options.nproc is not None:
        return launch(options)
    from deltarec.distributed import process_group
    from deltarec.predict import predict

    output = options.folder or options.run_dir / "predictions"
    with process_group(threads=options.threads) as device:
        found = predict(job, source, checkpoint, output, device)
        if found is None:
            return None
    text = f"{found['rows']:,} rows in {found['parts']} files, step {found['step']}"
    return Answer(found, f"{text}\npredictions: {output}")


PREDICT = Verb(
    "Scores rows by a run's checkpoint: Parquet in and out.",
    _arguments,
    _run,
    "deltarec.predict:Predicted",
)
