# SPDX-License-Identifier: Apache-2.0
"""`deltarec bench`."""

import argparse
import json
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from deltarec.verbs.verb import Answer, Parser, Verb

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


class Measured(TypedDict):
    """What a benchmark has measured."""

    name: str
    results: Any


def _arguments(parser: Parser) -> None:
    names = ", ".join(sorted(path.stem for path in BENCHMARKS.glob("*.py")))
    parser.add_argument("name", metavar="NAME", help=f"one of {names}")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the benchmark itself")


def _run(options: argparse.Namespace) -> Answer | None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    if options.name not in names:
        raise ValueError(
            f"benchmark '{options.name}' is not known: one of {', '.join(names)} (in {BENCHMARKS})"
        )
    words = [word for word in options.arguments if word != "--json"]
    as_json = options.json or len(words) < len(options.arguments)  # before the name, or after it
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "results.json")
        own = ["--output", str(output)] if as_json else []
        sys.argv = [options.name, *words, *own]
        runpy.run_path(str(BENCHMARKS / f"{options.name}.py"), run_name="__main__")
        if not as_json:
            return None
        return Answer({"name": options.name, "results": json.loads(output.read_text())}, "")


BENCH = Verb(
    "Runs a benchmark of the repository.", _arguments, _run, "deltarec.verbs.bench:Measured"
)
