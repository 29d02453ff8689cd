# SPDX-License-Identifier: Apache-2.0
"""The order of an epoch, which knows nothing of ranks.

The N rows of a dataset are cut into *lanes*, contiguous row ranges of about equal size, and each
lane is dealt row by row to its *streams*; lanes times streams a lane is V, the number of logical
streams. The epoch is: the first sample of every stream in turn, the second of every stream, and so
on. A rank owns whole streams, so it reads only their lanes, and the global batch (the next B
samples of the epoch) is the same set for any number of ranks. All streams are equally long within a
sixty-fourth, so ranks carry equal loads, and one number, how many samples of the epoch are done,
says where every stream stands.

Two things make the order random: within a lane the row groups are read in a permuted order, and
within a stream the samples are permuted in windows.

Why lanes: row groups are the smallest unit that Parquet decodes cheaply. A row group with a cut
inside is decoded once for each lane that has a part of it. So a cut moves to a bound of row groups
where one is near, and a dataset gets as many lanes as lose little to the other cuts: V where it has
many row groups, one where it has a single one (then every rank decodes all of it; that is the price
of such a file, not a fault).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_WASTE = 1 / 8
"""Share of all rows that cuts inside row groups may make the lanes decode in vain."""
NEAR = 1 / 128
"""A cut moves to a bound of row groups that is no further than this share of a lane."""


@dataclass(frozen=True)
class Segment:
    """A part of one row group, in a lane's reading order."""

    row_group: int
    """Index among the row groups of the whole dataset."""
    first_row: int
    """Index of the part's first row in the whole dataset."""
    skip: int
    """Rows of the row group before the part, decoded in vain."""
    num_rows: int


class EpochOrder:
    """Which sample comes when, from the sizes of the row groups, the number of streams and a seed.

    Args:
        row_groups: rows of each row group, in file order.
        num_streams: V; a multiple of the number of ranks.
        window: samples of one stream that are shuffled among themselves.
        seed: of the job; None keeps file order within each stream.
    """

    def __init__(
        self, row_groups: Sequence[int], num_streams: int, window: int, seed: int | None
    ) -> None:
        self.bounds = np.concatenate([[0], np.cumsum(row_groups, dtype=np.int64)])
        self.num_rows = int(self.bounds[-1])
        self.num_streams = num_streams
        self.window = window
        self.seed = seed
        self.num_lanes = max(
            lanes
            for lanes in range(1, num_streams + 1)
            if num_streams % lanes == 0 and self._waste(lanes) <= MAX_WASTE * self.num_rows
        )
        self.streams_per_lane = num_streams // self.num_lanes
        self.lane_starts = self._lane_starts(self.num_lanes)
        lane_rows = np.repeat(np.diff(self.lane_starts), self.streams_per_lane)
        place_in_lane = np.arange(num_streams) % self.streams_per_lane
        self.lengths = (lane_rows - place_in_lane + self.streams_per_lane - 1) // (
            self.streams_per_lane
        )

    def _lane_starts(self, num_lanes: int) -> np.ndarray:
        starts = np.arange(num_lanes + 1, dtype=np.int64) * self.num_rows // num_lanes
        after = np.minimum(np.searchsorted(self.bounds, starts), len(self.bounds) - 1)
        before = np.maximum(after - 1, 0)
        nearer = np.where(self.bounds[after] - starts < starts - self.bounds[before], after, before)
        bounds = self.bounds[nearer]
        return np.where(abs(bounds - starts) * num_lanes <= NEAR * self.num_rows, bounds, starts)

    def _waste(self, num_lanes: int) -> int:
        """Rows that are decoded a second time, for another lane."""
        cuts = self._lane_starts(num_lanes)[1:-1]
        group = np.searchsorted(self.bounds, cuts, side="right") - 1
        inside = self.bounds[group] != cuts
        return int(np.diff(self.bounds)[group[inside]].sum())

    def taken(self, samples: int) -> np.ndarray:
        """How many samples of each stream, int64 `[V]`, are among the first `samples`."""
        assert 0 <= samples <= self.num_rows, f"{samples} of {self.num_rows} samples"
        rounds = min(int(self.lengths.min()), samples // self.num_streams)
        taken = np.full(self.num_streams, rounds, dtype=np.int64)
        left = samples - rounds * self.num_streams
        while left > 0:  # the last rounds, in which some streams are already at their end
            longer = np.flatnonzero(self.lengths > taken)[:left]
            taken[longer] += 1
            left -= len(longer)
        return taken

    def rank_streams(self, rank: int, num_ranks: int) -> range:
        """The streams that a rank owns."""
        each = self.num_streams // num_ranks
        return range(rank * each, (rank + 1) * each)

    def rank_counts(self, samples: int, num_ranks: int) -> np.ndarray:
        """How many of the first `samples` belong to each rank, int64 `[ranks]`."""
        return self.taken(samples).reshape(num_ranks, -1).sum(axis=1)

    def segments(self, lane: int, epoch: int) -> list[Segment]:
        """The row groups of a lane, or the parts of them it owns, in this epoch's reading order."""
        start, stop = self.lane_starts[lane], self.lane_starts[lane + 1]
        segments = []
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        for group in range(first, len(self.bounds) - 1):
            low, high = max(start, self.bounds[group]), min(stop, self.bounds[group + 1])
            if self.bounds[group] >= stop:
                break
            if low < high:
                skip = int(low - self.bounds[group])
                segments.append(Segment(group, int(low), skip, int(high - low)))
        return [segments[i] for i in self._permutation(len(segments), epoch, lane, window=-1)]

    def window_order(self, stream: int, window: int, epoch: int) -> np.ndarray:
        """The permutation of a stream's samples within one of its windows."""
        length = min(self.window, int(self.lengths[stream]) - window * self.window)
        return self._permutation(length, epoch, stream, window)

    def _permutation(self, length: int, epoch: int, place: int, window: int) -> np.ndarray:
        """Keyed by its arguments alone; window -1 is the order of a lane's row groups."""
        if self.seed is None:
            return np.arange(length)
        key = np.random.SeedSequence([self.seed, epoch, place, window + 1])
        return np.random.Generator(np.random.Philox(key)).permutation(length)
