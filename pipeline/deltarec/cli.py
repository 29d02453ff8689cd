# SPDX-License-Identifier: Apache-2.0
"""The console command `deltarec`: parse, call, print.

With `--json` standard output has one JSON document, the verb's answer or `{"error": …}`, and all
else goes to standard error. Each verb is a file in `verbs/`.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

from deltarec import __version__
from deltarec.verbs import GROUPS, VERBS
from deltarec.verbs.verb import Answer, Ended, Parser, Usage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for a job that failed, 2 for bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    output, as_json = sys.stdout, "--json" in words or words[:1] == ["call"]
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            answer = _run(words)
    except Exception as error:  # ours: the traceback is for us, a program still gets its document
        if as_json:
            print(json.dumps(_error("internal", 1, [repr(error)])), file=output, flush=True)
        raise
    if answer is None:
        return 0
    text = json.dumps(answer.value) if as_json else answer.text
    if text:
        print(text, file=output, flush=True)
    return answer.exit_code


def parser() -> Parser:
    """Of all verbs; what it parses has `verb_name`."""
    whole = Parser(prog="deltarec", description="Trains ranking models.")
    whole.add_argument("--version", action="version", version=__version__)
    groups = {"": whole.add_subparsers(title="verbs", required=True, metavar="VERB")}
    for name, verb in VERBS.items():
        group, _, last = name.rpartition(" ")
        if group not in groups:
            inner = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = inner.add_subparsers(title="verbs", required=True, metavar="VERB")
        sub = groups[group].add_parser(last, help=verb.help, description=verb.help)
        sub.add_argument("--json", action="store_true", help="answer as one JSON object")
        verb.arguments(sub)
        sub.set_defaults(verb_name=name)
    return whole


def _run(words: list[str]) -> Answer | None:
    """The verb's answer, or the error as one; what a person reads of it is printed already."""
    rank = os.environ.get("RANK", "0")
    try:
        options = parser().parse_args(words)
        options.command_line = words
        return VERBS[options.verb_name].run(options)
    except Usage as error:
        print(error.usage, end="", file=sys.stderr)
        return _failure("usage", 2, [str(error)], f"{error.program}: error: ")
    except ValueError as error:
        where = "deltarec" if rank == "0" else f"deltarec (rank {rank})"
        return _failure("input", 2, str(error).splitlines(), f"{where}: error: ")
    except ConnectionError as error:
        return _failure("connection", 1, [f"rank {rank}: {error}"])
    except Ended as error:
        return _failure("ended", error.exit_code, [str(error)] if str(error) else [])
    except KeyboardInterrupt:
        return _failure("interrupted", 130, ["interrupted"])


def _failure(kind: str, exit_code: int, lines: list[str], prefix: str = "deltarec: ") -> Answer:
    for line in lines:
        print(f"{prefix}{line}", file=sys.stderr)
    return Answer(_error(kind, exit_code, lines), "", exit_code)


def _error(kind: str, exit_code: int, messages: list[str]) -> dict[str, Any]:
    return {"error": {"kind": kind, "exit_code": exit_code, "messages": messages}}


if __name__ == "__main__":
    sys.exit(main())
