# SPDX-License-Identifier: Apache-2.0
"""Watches a training job: termination, losses that are not finite, ranks that hang.

Ranks must agree on the step at which they stop, or the others wait for ever in a collective. They
exchange a few flags after each step, without waiting: the answer is read after the next one.

A rank that hangs can not be asked, and those that wait for it hang too. So every rank watches
itself, in a thread: whoever makes no progress for too long says where it waits and ends its
process, upon which the launcher ends the others.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.distributed import rank

TRY_AGAIN = 75
"""Exit code of a job that was told to end and has saved its state (EX_TEMPFAIL)."""


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """On SIGTERM leave all contexts, which save what they have, and exit with TRY_AGAIN.

    A second one does not disturb them.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(TRY_AGAIN)  # whatever the process is doing, that is caught by nobody on the way

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Terminated(Exception):
    """The job was told to end by SIGTERM; its checkpoint is written."""


class NotFinite(ValueError):
    """A loss, or what it has made of the model, is not a finite number."""


@dataclass
class _Watched:
    """What a thread does, and when it last made progress."""

    what: str
    alive: float


class Watchdog:
    """Ends this process if a thread under watch makes no progress for too long.

    Args:
        hang_seconds: how long that is.
    """

    GRACE_SECONDS = 3.0
    """Between the message and the end, so that other ranks can say where they wait."""

    def __init__(self, hang_seconds: float) -> None:
        self.hang_seconds = hang_seconds
        self._watched: dict[int, _Watched] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """Watch the calling thread until the context ends; within, `beat` tells of progress.

        Args:
            what: the thread does, for the message. Contexts may be nested; the inner one counts.
        """
        thread = threading.get_ident()
        with self._changed:
            outer = self._watched.get(thread)
            self._watched[thread] = _Watched(what, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog")
                self._thread.start()
        try:
            yield
        finally:
            with self._changed:
                del self._watched[thread]
                if outer is not None:
                    self._watched[thread] = _Watched(outer.what, time.monotonic())
                self._changed.notify()

    def beat(self) -> None:
        """The calling thread has made progress."""
        watched = self._watched.get(threading.get_ident())
        if watched is not None:
            watched.alive = time.monotonic()

    def _run(self) -> None:
        with self._changed:
            while self._watched:
                self._changed.wait(min(1.0, self.hang_seconds / 4))
                now = time.monotonic()
                if any(now - w.alive > self.hang_seconds for w in self._watched.values()):
                    self._report(now)
                    time.sleep(self.GRACE_SECONDS)
                    os._exit(1)
            self._thread = None

    def _report(self, now: float) -> None:
        frames = sys._current_frames()
        for thread, watched in self._watched.items():
            print(
                f"deltarec: rank {rank()}: {watched.what} has made no progress for "
                f"{now - watched.alive:.0f} s (train.hang_seconds is {self.hang_seconds:.0f}); "
                f"it waits in {_where(frames.get(thread))}",
                file=sys.stderr,
                flush=True,
            )


class Supervision:
    """A context around the training loop.

    Args:
        tasks: names of the tasks, in the order of the losses.
        watchdog: is told of every step.
    """

    def __init__(self, tasks: Sequence[str], watchdog: Watchdog) -> None:
        self.tasks = tasks
        self.watchdog = watchdog
        self._terminate = False
        self._pending: tuple[int, Tensor, dist.Work] | None = None
        self._last: tuple[int, Tensor] | None = None
        self._previous_handler: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Supervision":
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)  # pyright: ignore

    def after_step(self, step: int, losses: Tensor) -> bool:
        """Tell of a finished step; returns whether all ranks are to stop now.

        Args:
            step: its number.
            losses: `[T]`, this rank's share.

        Raises:
            NotFinite: a loss of the step before was NaN or infinite on some rank.
        """
        self.watchdog.beat()
        stop = self._read()
        # The step before: on a GPU its losses are there by now, so that reading them does not wait.
        if self._last is not None:
            earlier, values = self._last
            flags = torch.cat([torch.tensor([self._terminate]), ~values.isfinite().cpu()]).int()
            work = dist.all_reduce(flags, async_op=True)
            assert work is not None
            self._pending = (earlier, flags, work)
        self._last = (step, losses.detach())
        return stop

    def told_to_end(self) -> bool:
        """Whether any rank was told to end; a collective, for waiting between steps."""
        self.watchdog.beat()
        flag = torch.tensor(int(self._terminate))
        dist.all_reduce(flag)
        return bool(flag)

    def check_now(self) -> None:
        """Raise NotFinite if the losses of the last step are not finite on some rank."""
        self._read()
        if self._last is not None:
            step, values = self._last
            flags = torch.cat([torch.zeros(1, dtype=torch.bool), ~values.isfinite().cpu()]).int()
            dist.all_reduce(flags)
            self._raise_if_not_finite(step, flags)

    def _read(self) -> bool:
        if self._pending is None:
            return False
        step, flags, work = self._pending
        self._pending = None
        work.wait()
        self._raise_if_not_finite(step, flags)
        return bool(flags[0])

    def _raise_if_not_finite(self, step: int, flags: Tensor) -> None:
        bad = [task for task, flag in zip(self.tasks, flags[1:].tolist(), strict=True) if flag]
        if bad:
            raise NotFinite(f"the loss of task {', '.join(bad)} is not finite at step {step}")

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._terminate = True


def _where(frame: FrameType | None) -> str:
    """The innermost line, and the innermost one of this project: `FILE:LINE in FUNCTION`."""
    lines = []
    while frame is not None:
        code = frame.f_code
        line = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        if not lines or f"{os.sep}deltarec{os.sep}" in code.co_filename:
            lines.append(line)
        if len(lines) == 2:
            break
        frame = frame.f_back
    return ", called from ".join(lines) or "an unknown place"
