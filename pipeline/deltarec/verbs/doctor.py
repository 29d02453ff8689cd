# SPDX-License-Identifier: Apache-2.0
"""`deltarec doctor`."""

import argparse

from deltarec.verbs.verb import Answer, Parser, Verb


def _arguments(parser: Parser) -> None:
    """There are none."""


def _run(options: argparse.Namespace) -> Answer:
    from deltarec.doctor import examine

    found = examine()
    lines = [
        f"{name:12} {value}" for name, value in found.items() if name not in ("problems", "mend")
    ]
    lines += [f"problem: {problem}" for problem in found["problems"]]
    lines.append(f"to mend: {found['mend']}" if found["problems"] else "all is well")
    return Answer(found, "\n".join(lines), exit_code=1 if found["problems"] else 0)


DOCTOR = Verb(
    "Prints versions and says whether they fit together.", _arguments, _run, "deltarec.doctor:Found"
)
