# SPDX-License-Identifier: Apache-2.0
"""Watches a training job: termination, losses that are not finite, ranks that hang.

Ranks must agree on the step at which they stop, or the others wait for ever in a collective. They
exchange a few flags after each step, without waiting: the answer is read after the next one.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.distributed import rank

TRY_AGAIN = 75
"""Exit code of a job that was told to end and has saved its state (EX_TEMPFAIL)."""


class Terminated(Exception):
    """The job was told to end by SIGTERM; its checkpoint is written."""


class NotFinite(ValueError):
    """A loss is not a finite number."""


class Supervision:
    """A context around the training loop.

    Args:
        tasks: names of the tasks, in the order of the losses.
        hang_seconds: how long a step may take before the job ends itself.
    """

    def __init__(self, tasks: Sequence[str], hang_seconds: float) -> None:
        self.tasks = tasks
        self.hang_seconds = hang_seconds
        self._terminate = False
        self._pending: tuple[int, Tensor, dist.Work] | None = None
        self._last: tuple[int, Tensor] | None = None
        self._alive = time.monotonic()
        self._ended = threading.Event()
        self._previous_handler: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Supervision":
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._alive = time.monotonic()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._ended.set()
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
        self._alive = time.monotonic()
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

    def check_now(self) -> None:
        """Raise NotFinite if the losses of the last step are not finite on some rank."""
        self._read()
        if self._last is not None:
            step, values = self._last
            flags = torch.cat([torch.zeros(1, dtype=torch.bool), ~values.isfinite().cpu()]).int()
            dist.all_reduce(flags)
            self._raise_if_not_finite(step, flags)

    def pause(self) -> "_Pause":
        """A context for what may take long between steps, such as an evaluation."""
        return _Pause(self)

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

    def _watch(self) -> None:
        main = threading.main_thread().ident
        while not self._ended.wait(min(1.0, self.hang_seconds / 4)):
            waited = time.monotonic() - self._alive
            if waited < self.hang_seconds:
                continue
            frame = sys._current_frames().get(main or 0)
            print(
                f"deltarec: rank {rank()}: no step has ended for {waited:.0f} s "
                f"(train.hang_seconds is {self.hang_seconds:.0f}); it waits in {_where(frame)}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


class _Pause:
    def __init__(self, supervision: Supervision) -> None:
        self.supervision = supervision

    def __enter__(self) -> None:
        self.supervision._alive = float("inf")

    def __exit__(self, *error: object) -> None:
        self.supervision._alive = time.monotonic()


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
