# SPDX-License-Identifier: Apache-2.0
"""What a verb of the command is: its arguments, what it does, and the type of its answer.

One declaration has three readers: argparse parses a command line by it, `tools.py` makes the JSON
schemas of a tool of it, and turns a tool call back into a command line.

Modules of verbs import what is heavy inside their functions, so that `--help` and usage errors
answer at once.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


class Answer:
    """What a verb has found.

    Args:
        value: for a program: plain data of the type that the verb declares.
        text: the same for a person.
        exit_code: 1 if it says that something failed.
    """

    def __init__(self, value: Mapping[str, Any], text: str, exit_code: int = 0) -> None:
        self.value = value
        self.text = text
        self.exit_code = exit_code


class Ended(Exception):
    """A job that ended before its time, for no wrong input; the message says what mends it.

    Args:
        message: one line.
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Usage(Exception):
    """A command line that no verb takes.

    Args:
        message: one line.
        program: the verb, as it was called.
        usage: how it would be right.
    """

    def __init__(self, message: str, program: str, usage: str) -> None:
        super().__init__(message)
        self.program = program
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """Keeps what was declared, takes no abbreviations, and raises `Usage`."""

    def __init__(self, **options: Any) -> None:
        self.declared: list[argparse.Action] = []
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        self.declared.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        raise Usage(message, self.prog, self.format_usage())


JOB = "deltarec.job:Job"
"""The type of a training job's YAML file."""


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        help: one sentence.
        arguments: declares them to a parser.
        run: does it, by what was parsed; None from all ranks but the main one.
        answer: the type of the answer's value, as "module:Type".
        configuration: the type of the YAML file, if there is one, likewise.

    Options that every verb gets: `json`, whether a program reads the answer, and `command_line`,
    the words that were parsed.
    """

    help: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], Answer | None]
    answer: str
    configuration: str | None = None


def count(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return int(text)


def add_configuration(parser: Parser) -> None:
    """Declare the YAML file and what overrides it."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the job's YAML file")
    add_overrides(parser)


def add_overrides(parser: Parser) -> None:
    """Declare `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="path.to.key=value",
        help="override one key of the configuration; repeatable",
    )


def add_processes(parser: Parser) -> None:
    """Declare how many processes there are, and their threads."""
    parser.add_argument("--nproc", type=count, help="number of processes on this machine")
    parser.add_argument(
        "--threads",
        type=count,
        help="of a process; on CPU, the cores divided by the processes if not given",
    )
