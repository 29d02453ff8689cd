# SPDX-License-Identifier: Apache-2.0
"""Made-up feedback logs where only what was shown *around* a click says what it was worth.

A row is a user's log of clicks and un-clicked exposures, and a target. Half of the user's items are
*wanted*: they were seen several times around each click on them. The other half are clicked by
accident: around such a click another item of that half is seen, each exactly as often. So a wanted
item has as many clicks and as many exposures as any other, at the same kind of times; the two
differ by nothing but which exposures stand around which clicks.

The target is one of the user's items, clicked with a chance of `high` if it is wanted, of `low` if
not. Whatever reads clicks and exposures as two bags has an AUC of 0.5; that of the chance itself is
0.5 + (high - low) / (8 p (1 - p)) with p = (high + low) / 2. Some exposures are noise, of any of
the user's items.

The lists are built by `event_log.py` from a log with times, as they are of real data.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from deltarec.data.prepare.dataset import Dataset, write_split
from deltarec.data.prepare.event_log import EventLog, Feedback, aligned

BLOCK_ROWS = 4_096


class SynthAligned(Dataset):
    """Synthetic feedback logs whose signal is in the alignment alone; needs no raw files."""

    dataset: Literal["synth-aligned"] = "synth-aligned"
    seed: int = Field(default=0, ge=0)
    """Seed of all rows."""
    rows: int = Field(default=100_000, ge=10)
    """Number of rows of the three splits together (80/10/10); each is a user of its own."""
    num_items: int = Field(default=20, ge=4)
    """Items that there are."""
    user_items: int = Field(default=4, ge=4, multiple_of=2)
    """Items of a user; half of them are wanted."""
    clicks: int = Field(default=2, ge=1)
    """Clicks on each item of a user."""
    telling: int = Field(default=2, ge=1)
    """Exposures on each side of a click that tell of it."""
    noise: int = Field(default=1, ge=0)
    """Exposures of any of the user's items beyond those, on each side."""
    high: float = Field(default=0.8, gt=0, lt=1)
    """Chance of a click on a target that is wanted."""
    low: float = Field(default=0.2, gt=0, lt=1)
    """Chance of a click on a target that is not."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.user_items > self.num_items:
            raise ValueError(
                f"user_items {self.user_items}: more than the {self.num_items} of num_items"
            )
        return self

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        cuts = [0, self.rows * 8 // 10, self.rows * 9 // 10, self.rows]
        for split, begin, end in zip(("train", "valid", "test"), cuts, cuts[1:], strict=False):
            write_split(target, split, end - begin, self._tables(begin, end))
        middle = (self.high + self.low) / 2
        best = 0.5 + (self.high - self.low) / (8 * middle * (1 - middle))
        return {
            "table_sizes": {"item": self.num_items},
            "notes": [
                "clicks, shown and recent_shown hold ids of the table of item",
                "shown has a list for each of clicks, recent_shown all exposures",
            ],
            "best": {"click": {"auc": best}},
        }

    def _tables(self, begin: int, end: int) -> Iterator[pa.Table]:
        """Rows come in blocks that are always drawn whole: they do not depend on the split."""
        for block in range(begin // BLOCK_ROWS, -(-end // BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            yield self._block(block)[max(begin - first, 0) : end - first]

    def _block(self, block: int) -> pa.Table:
        rng = np.random.default_rng([self.seed, block])
        item, label = self._draw(rng)
        num_events = item.shape[1]
        time = np.cumsum(rng.integers(1, 60_000, item.shape), axis=1)
        place = np.arange(num_events)
        clicked = (place % self._per_click == self._per_click // 2) & (place < num_events - 1)
        log = EventLog(np.repeat(np.arange(BLOCK_ROWS), num_events), time.ravel())
        shown = ~clicked & (place < num_events - 1)
        clicks = Feedback(log, np.tile(clicked, BLOCK_ROWS))
        exposures = Feedback(log, np.tile(shown, BLOCK_ROWS))
        rows = np.arange(1, BLOCK_ROWS + 1) * num_events - 1
        history = clicks.last(rows, num_events)
        items = item.ravel()
        around = exposures.around(clicks, self.telling + self.noise)
        shown_items = items[exposures.events]
        return pa.table(
            {
                "item": items[rows],
                "clicks": history.lists(items[clicks.events]),
                "shown": aligned(history, around, exposures, rows, shown_items),
                "recent_shown": exposures.last(rows, num_events).lists(shown_items),
                "click": label.astype(np.int8),
            }
        )

    @property
    def _per_click(self) -> int:
        """Events of a click and what is shown around it; the click is in the middle."""
        return 2 * (self.telling + self.noise) + 1

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Items of all events `[rows, events]`, the last the target, and the targets' labels."""
        half = self.user_items // 2
        own = rng.random((BLOCK_ROWS, self.num_items)).argsort(axis=1)[:, : self.user_items]
        # around a click on a wanted item is the item itself, around another the one before it
        neighbour = np.append(np.arange(half), half + np.roll(np.arange(half), 1))
        order = np.tile(np.repeat(np.arange(self.user_items), self.clicks), (BLOCK_ROWS, 1))
        order = rng.permuted(order, axis=1)  # [rows, clicks], positions among the user's items
        events = rng.integers(0, self.user_items, (*order.shape, self._per_click))
        events[:, :, self.noise : self._per_click - self.noise] = neighbour[order][:, :, None]
        events[:, :, self._per_click // 2] = order
        target = rng.integers(0, self.user_items, BLOCK_ROWS)
        chance = np.where(target < half, self.high, self.low)
        everything = np.append(events.reshape(BLOCK_ROWS, -1), target[:, None], axis=1)
        return np.take_along_axis(own, everything, axis=1), rng.random(BLOCK_ROWS) < chance
