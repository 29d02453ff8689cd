# SPDX-License-Identifier: Apache-2.0
"""`deltarec compare`: finished runs beside each other."""

import argparse

from deltarec.verbs.verb import Answer, Parser, Verb


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="LABEL=FOLDER",
        help="run folders; those of one label are one variant, at several seeds",
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="that others are compared with; the first if not given"
    )
    parser.add_argument(
        "--metric", metavar="TASK/METRIC", help="that decides; as in early stopping if not given"
    )


def _run(options: argparse.Namespace) -> Answer:
    from deltarec.sweep import compare

    comparison = compare(options.runs, options.baseline, options.metric)
    return Answer(comparison.plain(), comparison.markdown())


COMPARE = Verb(
    "Compares finished runs, over seeds if there are several.",
    _arguments,
    _run,
    "deltarec.comparison:Compared",
)
