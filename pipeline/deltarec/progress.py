# SPDX-License-Identifier: Apache-2.0
"""What a person, or a log file, sees of a long run."""

import sys
import time

from tqdm import tqdm

from deltarec.distributed import is_main


class Progress:
    """A bar on a terminal; plain lines elsewhere: each note, and once a minute without one.

    Only the main rank shows it.

    Args:
        label: what is going on.
        total: samples at the end.
        done: samples already done when this began.
    """

    SECONDS = 60.0
    """Between two plain lines, if there is nothing to note."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label = label
        self.total = total
        self.done = done
        self.start = self.told = time.monotonic()
        self.first = done
        self.bar = None
        if is_main() and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, unit=" samples", desc=label, unit_scale=True)

    def start_from(self, done: int) -> None:
        """So many samples were done when this began."""
        self.done = self.first = done
        if self.bar is not None:
            self.bar.initial = self.bar.n = done
            self.bar.refresh()

    @property
    def samples_per_second(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def update(self, samples: int, note: str = "") -> None:
        """Count one step of so many samples."""
        self.done += samples
        if self.bar is not None:
            self.bar.update(samples)
            if note:
                self.bar.set_postfix_str(note)
        elif is_main() and (note or time.monotonic() - self.told > self.SECONDS):
            self.told = time.monotonic()
            rate = self.samples_per_second
            left = (self.total - self.done) / max(rate, 1e-9)
            share = 100 * self.done / max(self.total, 1)
            print(
                f"{self.label}: {share:5.1f} % · {self.done:,} samples · {rate:,.0f}/s · "
                f"{left:,.0f} s left{note and f' · {note}'}",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if not is_main():
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
