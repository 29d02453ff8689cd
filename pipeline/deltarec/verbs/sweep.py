# SPDX-License-Identifier: Apache-2.0
"""`deltarec sweep`."""

import argparse
from pathlib import Path

from deltarec.verbs.verb import JOB, Answer, Ended, Parser, Verb, add_configuration, count


def _arguments(parser: Parser) -> None:
    add_configuration(parser)
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="path.to.key=[A,B]",
        help="an axis of the grid; repeatable, all combinations are trained",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'LABEL: [FILE] path.to.key=value …'",
        help="one more configuration, beside the grid; repeatable",
    )
    parser.add_argument("--seeds", type=count, default=3, help="runs of each variant; 3")
    parser.add_argument(
        "--baseline",
        metavar="LABEL|path.to.key=value",
        help="the variant that others are compared with, or values of axes that each is moved to; "
        "the first variant if not given",
    )
    parser.add_argument(
        "--metric", metavar="TASK/METRIC", help="that decides; as in early stopping if not given"
    )
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; 1")
    parser.add_argument("--nproc", type=count, help="processes of each run; 1")
    parser.add_argument(
        "--run-dir", type=Path, help="folder of the sweep; runs/sweep-NAME if not given"
    )
    parser.add_argument(
        "--skip-refused",
        action="store_true",
        help="list impossible combinations in the table instead of refusing the sweep",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="of finished runs; they are removed if not given",
    )


def _run(options: argparse.Namespace) -> Answer:
    from deltarec.distributed import launched, silence_libraries
    from deltarec.grid import baselines, variants
    from deltarec.sweep import Launcher, plan, run_sweep

    if launched():
        raise ValueError("deltarec sweep starts its runs itself: call it without a launcher")
    silence_libraries()
    folder = options.run_dir or Path("runs", f"sweep-{Path(options.config).stem}")
    found = variants(Path(options.config), options.set, options.grid, options.variant)
    compared = baselines(found, options.baseline)
    nproc = options.nproc or 1
    launcher = Launcher.here(options.jobs, nproc)
    planned = plan(found, options.seeds, folder, nproc, options.metric, options.skip_refused)
    try:
        comparison = run_sweep(planned, folder, compared, launcher, options.keep_checkpoints, print)
    except SystemExit as ended:  # by SIGTERM
        raise Ended("told to end; the same command goes on", ended.code) from None  # pyright: ignore
    answer = {**comparison.plain(), "folder": str(folder)}
    text = f"\n{comparison.markdown()}\nsweep folder: {folder}"
    return Answer(answer, text, exit_code=1 if comparison.failed else 0)


SWEEP = Verb(
    "Trains variants of a job over seeds and compares them.",
    _arguments,
    _run,
    "deltarec.comparison:Swept",
    JOB,
)
