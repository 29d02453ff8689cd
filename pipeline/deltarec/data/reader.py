# SPDX-License-Identifier: Apache-2.0
"""Parquet files to batches: each sample to exactly one rank, exactly once an epoch.

The order is `streams.py`'s. A rank reads window by window: the next window of every stream it owns,
decoded and shuffled into one `Block`, from which batches are cut. Three threads run ahead of the
trainer: one reads a window's columns, one decodes and shuffles, one cuts batches.

A row group that turns out to be damaged stops the job, or under `on_bad_file: skip` its rows from
the first unreadable piece on are lost. Which rows these are depends on the file alone. They keep
their places in the order, so steps and positions stay what they are on every rank, and become
padding in the batches, which counts nowhere.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from deltarec.config import Config
from deltarec.data.batch import Batch, Position, make_batch, node_slices
from deltarec.data.block import Block
from deltarec.data.decode import decode
from deltarec.data.files import UNREADABLE, Damage, ParquetFile, one_line
from deltarec.data.negatives import Negatives
from deltarec.data.prefetch import prefetched
from deltarec.data.schema import Schema
from deltarec.data.streams import EpochOrder, Segment

LOST = -2
"""Row i that is lost has the index LOST - i until its batch is made; -1 is padding."""
WHOLE_ROW_GROUP = 131_072
"""Row groups up to so many rows are read whole, longer ones in pieces of that size."""


@dataclass(frozen=True)
class Piece:
    """Rows of one or several files."""

    table: pa.Table | None
    """Their columns; None where they are lost, in a row group that is damaged."""
    index: np.ndarray
    """Their numbers in the dataset, int64 `[rows]`."""

    def slice(self, start: int, stop: int) -> "Piece":
        table = None if self.table is None else self.table.slice(start, stop - start)
        return Piece(table, self.index[start:stop])

    def take(self, rows: np.ndarray) -> "Piece":
        return Piece(None if self.table is None else self.table.take(rows), self.index[rows])


class ReaderConfig(Config):
    """How files are read."""

    streams: int = Field(default=24, gt=0)
    """Logical streams that the rows are cut into; a multiple of the number of processes. The order
    of an epoch depends on it, and not on the processes."""
    shuffle: bool = True
    """Whether the training data are shuffled."""
    shuffle_window: int = Field(default=8192, gt=0)
    """Samples of a stream that are shuffled among themselves; memory grows with it."""
    prefetch: int = Field(default=4, gt=0)
    """Batches made ahead of the trainer."""

    def check(self, num_ranks: int) -> None:
        """Find out whether so many ranks can share the streams.

        Raises:
            ValueError: they cannot.
        """
        if self.streams % num_ranks:
            raise ValueError(
                f"data.reader.streams is {self.streams}, which {num_ranks} processes cannot "
                f"divide; set it to a multiple, such as {num_ranks * -(-24 // num_ranks)}"
            )


class Reader:
    """Reads one rank's share of a dataset.

    Args:
        files: what `files.find` found.
        schema: the columns and what they mean.
        config: streams, shuffling, prefetching.
        batch_size: samples of a global batch, over all ranks.
        seed: of the shuffle; None reads in file order.
        rank: this rank.
        num_ranks: how many ranks share the data.
        pin_memory: whether batches are put into page-locked memory, for copies to a GPU.
        damage: files that `files.find` has left out.
        negatives: draws those of pairwise tasks; without it none are drawn, and batches have no
            nodes of a graph.

    Raises:
        ValueError: a column is missing or of a wrong type, or the streams cannot be divided.
    """

    def __init__(
        self,
        files: Sequence[ParquetFile],
        schema: Schema,
        config: ReaderConfig,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        num_ranks: int = 1,
        pin_memory: bool = False,
        damage: Damage | None = None,
        negatives: Negatives | None = None,
    ) -> None:
        config.check(num_ranks)
        for file in files:
            schema.check(file.schema, file.path)
        self.schema = schema
        self.config = config
        self.batch_size = batch_size
        self.rank = rank
        self.num_ranks = num_ranks
        self.pin_memory = pin_memory
        self.negatives = negatives
        self._nodes = None if negatives is None else node_slices(schema, rank, num_ranks)
        self.damage = dict(damage or {})
        """What is wrong with files left out, or with some rows lost, as far as this rank has
        read."""
        self._row_groups = [
            (file, group, rows) for file in files for group, rows in enumerate(file.row_groups)
        ]
        sizes = [rows for _, _, rows in self._row_groups]
        self.order = EpochOrder(sizes, config.streams, config.shuffle_window, seed)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self.order.num_rows

    @property
    def identity(self) -> dict[str, int | str | None]:
        """What the order of the samples follows from, but for the order of rows in a row group.

        Files are known by the rows and bytes of their row groups, so that they may be moved.
        """
        groups = [
            (rows, file.metadata.row_group(i).total_byte_size) for file, i, rows in self._row_groups
        ]
        return {
            "rows": self.num_samples,
            "row groups": len(groups),
            "digest of the row groups' sizes": hashlib.sha256(repr(groups).encode()).hexdigest()[
                :16
            ],
            "data.reader.streams": self.order.num_streams,
            "data.reader.shuffle_window": self.order.window,
            "seed of the shuffle": self.order.seed,
        }

    def require(
        self, identity: dict[str, int | str | None], whose: str, mend: str, what: str = "the data"
    ) -> None:
        """Find out whether a position in data of that identity means the same in these.

        Raises:
            ValueError: the data differ, or the order that they are read in.
        """
        for name, here in self.identity.items():
            if identity.get(name) != here:
                raise ValueError(
                    f"{what} are not those of {whose}: {name}: {identity.get(name)} there, "
                    f"{here} here; {mend}"
                )

    @property
    def num_steps(self) -> int:
        """Global batches of an epoch."""
        return -(-self.num_samples // self.batch_size)

    def read(self, start: Position, epochs: int) -> Iterator[Batch]:
        """Batches from a position to the end of the last epoch, prefetched."""
        return prefetched(self._read(start, epochs), self.config.prefetch)

    def _read(self, start: Position, epochs: int) -> Iterator[Batch]:
        for epoch in range(start.epoch, epochs):
            for batch in self._epoch(epoch, start.samples if epoch == start.epoch else 0):
                yield batch.pin_memory() if self.pin_memory else batch

    def _epoch(self, epoch: int, samples: int) -> Iterator[Batch]:
        order, rank = self.order, self.rank
        blocks = prefetched(self._blocks(epoch, samples), depth=1)
        pending: list[Block] = []
        for start in range(samples, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            counts = order.rank_counts(stop, self.num_ranks)
            counts -= order.rank_counts(start, self.num_ranks)
            while sum(block.num_rows for block in pending) < counts[rank]:
                pending.append(next(blocks))
            rows = Block.concat(pending) if pending else self._empty
            pending = [rows.slice(int(counts[rank]), rows.num_rows)]
            after = Position(epoch, stop) if stop < self.num_samples else Position(epoch + 1, 0)
            share, lost = self._without_lost(rows.slice(0, int(counts[rank])))
            if self.negatives is not None:
                share = self.negatives.add_to(share, epoch)
            size, num_samples = int(counts.max()), stop - start
            batch = make_batch(share, self.schema, size, num_samples, epoch, after, self._nodes)
            yield replace(batch, lost=lost) if lost else batch

    def _without_lost(self, block: Block) -> tuple[Block, Counter[str]]:
        """The rows that are there, and how many are lost of each file."""
        index = block.flat["index"]
        lost = index < 0
        if not lost.any():
            return block, Counter()
        paths = Counter(self._place(row)[0] for row in LOST - index[lost])
        return block.take(np.flatnonzero(~lost)), paths

    @cached_property
    def _empty(self) -> Block:
        file = self._row_groups[0][0]
        table = file.schema.empty_table()
        return decode(self.schema, table, np.empty(0, dtype=np.int64), self._place)

    def _decode(self, piece: Piece) -> Block:
        if piece.table is None:
            return self._empty.blank(LOST - piece.index)
        return decode(self.schema, piece.table, piece.index, self._place)

    def _blocks(self, epoch: int, samples: int) -> Iterator[Block]:
        """This rank's samples from the given place of the epoch, a shuffled window at a time."""
        for window in prefetched(self._windows(epoch, samples), depth=1):
            blocks = [self._decode(piece) for piece in _joined(window.pieces)]
            block = Block.concat(blocks).take(window.order)
            yield block.slice(window.skip, block.num_rows) if window.skip else block

    def _windows(self, epoch: int, samples: int) -> Iterator["_Window"]:
        order = self.order
        streams = order.rank_streams(self.rank, self.num_ranks)
        first = int(order.taken(samples).min()) // order.window
        per_lane = order.streams_per_lane
        lanes = [
            _Lane(
                self._pieces(order.segments(lane, epoch), skip=first * order.window * per_lane),
                [stream for stream in streams if stream // per_lane == lane],
                per_lane,
                first * order.window * per_lane,
            )
            for lane in range(streams[0] // per_lane, streams[-1] // per_lane + 1)
        ]
        own = order.lengths[streams.start : streams.stop]
        done = order.taken(samples)[streams.start : streams.stop].sum()
        before = np.minimum(own, first * order.window).sum()
        for window in range(first, -(-int(own.max()) // order.window)):
            parts: list[Piece] = []
            columns: list[np.ndarray] = []
            base = 0
            for lane in lanes:
                pieces = list(lane.read(order.window * per_lane))
                parts += pieces
                for place, stream in enumerate(lane.streams):
                    shuffled = order.window_order(stream, window, epoch)
                    columns.append(base + shuffled * len(lane.streams) + place)
                base += sum(len(piece.index) for piece in pieces)
            yield _Window(parts, _in_turn(columns), skip=int(max(0, done - before)))
            before += base

    def _place(self, row: int) -> tuple[str, int]:
        """The file of a row of the dataset, and its number there."""
        groups = np.searchsorted(self.order.bounds, row, side="right")
        file = self._row_groups[int(groups) - 1][0]
        first = next(i for i, (other, _, _) in enumerate(self._row_groups) if other is file)
        return file.path, int(row - self.order.bounds[first])

    def _pieces(self, segments: Sequence[Segment], skip: int) -> Iterator[Piece]:
        """Consecutive rows in a lane's order."""
        columns = self.schema.columns()
        for segment in segments:
            if skip >= segment.num_rows:
                skip -= segment.num_rows
                continue
            file, group, _ = self._row_groups[segment.row_group]
            row = segment.first_row - segment.skip
            low, high = segment.first_row + skip, segment.first_row + segment.num_rows
            skip = 0
            for table in self._tables(file, group, columns):
                start, stop = max(low, row), min(high, row + table.num_rows)
                if start < stop:
                    yield Piece(table.slice(start - row, stop - start), np.arange(start, stop))
                row += table.num_rows
                if row >= high:
                    break
            if row < high:  # the rest is lost
                yield Piece(None, np.arange(max(low, row), high))

    def _tables(self, file: ParquetFile, group: int, columns: list[str]) -> Iterator[pa.Table]:
        """A row group in pieces, as far as it can be read.

        Raises:
            ValueError: it cannot be read to its end, and damage stops; or the storage is at fault.
        """
        try:
            with file.open() as parquet:
                yield from _read_row_group(parquet, group, columns)
        except UNREADABLE as error:
            what = f"row group {group} cannot be read, the file is damaged: {one_line(error)}"
            if self.schema.on_bad_file == "stop":
                raise ValueError(
                    f"{file.path}: {what}; mend or remove the file, or set data.on_bad_file to skip"
                ) from error
            if file.path not in self.damage:
                file.require_bytes()
                self.damage[file.path] = what


@dataclass(frozen=True)
class _Window:
    """One window of each of a rank's streams."""

    pieces: list[Piece]
    order: np.ndarray
    """The shuffled samples, int64 `[rows]`: numbers of rows of all pieces together."""
    skip: int
    """Samples at the beginning of that order that have been trained before."""


class _Lane:
    """Reads the rows of one lane that belong to this rank's streams.

    Args:
        pieces: the lane's rows, in order, from `position` on.
        streams: this rank's streams in the lane.
        per_lane: how many streams the lane has.
        position: the place in the lane of the first row.
    """

    def __init__(
        self,
        pieces: Iterator[Piece],
        streams: Sequence[int],
        per_lane: int,
        position: int,
    ) -> None:
        self.pieces = pieces
        self.streams = streams
        self.per_lane = per_lane
        self.position = position
        self.rest: Piece | None = None

    def read(self, num_rows: int) -> Iterator[Piece]:
        """The rank's part of the lane's next rows; fewer at the end of the lane."""
        while num_rows:
            piece = self.rest or next(self.pieces, None)
            if piece is None:
                return
            self.rest = None
            rows = len(piece.index)
            if rows > num_rows:
                self.rest = piece.slice(num_rows, rows)
                piece, rows = piece.slice(0, num_rows), num_rows
            num_rows -= rows
            place = np.arange(self.position, self.position + rows) % self.per_lane
            self.position += rows
            if len(self.streams) < self.per_lane:
                first = self.streams[0] % self.per_lane
                mine = np.flatnonzero((place >= first) & (place < first + len(self.streams)))
                piece = piece.take(mine)
            yield piece


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours of equal types put together: decoding is dear by the call."""
    for _, same in groupby(pieces, key=lambda piece: _type(piece)):
        parts = list(same)
        tables = [part.table for part in parts if part.table is not None]
        index = np.concatenate([part.index for part in parts])
        yield Piece(pa.concat_tables(tables) if tables else None, index)


def _type(piece: Piece) -> pa.Schema | None:
    return None if piece.table is None else piece.table.schema


def _in_turn(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One from each column in turn; a column that has ended is passed over."""
    longest = max(len(column) for column in columns)
    table = np.full((longest, len(columns)), -1, dtype=np.int64)
    for i, column in enumerate(columns):
        table[: len(column), i] = column
    flat = table.reshape(-1)
    return flat[flat >= 0]


def _read_row_group(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.Table]:
    threads = pa.cpu_count() > 1
    expected, read = parquet.metadata.row_group(group).num_rows, 0
    if expected <= WHOLE_ROW_GROUP:
        tables = iter([parquet.read_row_group(group, columns=columns, use_threads=threads)])
    else:
        batches = partial(parquet.iter_batches, batch_size=WHOLE_ROW_GROUP, use_threads=threads)
        found = batches(row_groups=[group], columns=columns)
        tables = (pa.Table.from_batches([batch]) for batch in found)
    for table in tables:
        table.validate(full=True)
        read += table.num_rows
        if read > expected:
            break
        yield table
    if read != expected:
        raise pa.ArrowInvalid(f"it has other rows than the {expected} that the footer tells")
