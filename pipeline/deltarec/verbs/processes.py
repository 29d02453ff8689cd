# SPDX-License-Identifier: Apache-2.0
"""Runs a verb as several ranks on this machine."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any

from deltarec.verbs.verb import Answer, Ended


def launch(options: argparse.Namespace) -> Answer | None:
    """Run this very command as `options.nproc` ranks.

    Returns:
        The ranks' answer if a program reads it; otherwise the main rank has printed its text.

    Raises:
        ValueError: a launcher has started this process.
        Ended: a rank has failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from deltarec.distributed import launched
    from deltarec.supervision import TRY_AGAIN

    if launched():
        raise ValueError("--nproc: a launcher has started this process already; leave it out")
    configuration = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=options.nproc,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="deltarec",  # needed by name alone: every launch has a store of its own
        max_restarts=0,
        monitor_interval=0.2,
    )
    # It repeats, in lines of its own, what the ranks have said.
    logging.getLogger(SignalException.__module__).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; ranks divide the cores later
    with tempfile.TemporaryFile("w+") as file:
        try:
            with _standard_output(file) if options.json else nullcontext():
                words = _without_nproc(options.command_line)
                elastic_launch(configuration, sys.executable)("-m", "deltarec.cli", *words)
        except ChildFailedError as error:
            number, failure = error.get_first_failure()
            said = [found["error"] for found in _objects(file) if "error" in found]
            if said:
                return Answer({"error": said[0]}, "", said[0]["exit_code"])
            if failure.exitcode > 0:  # the rank has said why, and this adds nothing
                raise Ended("", failure.exitcode) from None
            name = failure.signal_name()
            message = f"rank {number} was ended by {name}; the same command resumes"
            raise Ended(message, 1) from None
        except SignalException as ended:  # the ranks have got the signal too, and have saved
            message = f"ended by {ended.sigval.name}; the same command resumes"
            raise Ended(message, TRY_AGAIN) from None
        return Answer(_objects(file)[0], "") if options.json else None


def _without_nproc(arguments: list[str]) -> list[str]:
    if "--nproc" not in arguments:  # --nproc=N
        return [word for word in arguments if not word.startswith("--nproc=")]
    place = arguments.index("--nproc")
    return arguments[:place] + arguments[place + 2 :]


@contextmanager
def _standard_output(file: IO[str]) -> Iterator[None]:
    """Standard output, also of processes that are started within, goes to a file."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _objects(file: IO[str]) -> list[dict[str, Any]]:
    """The JSON objects that ranks have printed, one a line; not what libraries print."""
    file.seek(0)
    return [json.loads(line) for line in file if line.startswith("{")]
