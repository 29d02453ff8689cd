# SPDX-License-Identifier: Apache-2.0
"""What users did before a moment of their own: the only events that a prompt may know.

Each user has a *cut*, say the time of the first sample that a model is evaluated on. An event at
the cut or after it is the future. It stops the job and is named (`future: refuse`), before any
request is made, or is left out (`future: drop`) and counted.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from deltarec.config import Config
from deltarec.data.files import find
from deltarec.text.rows import TextRows, as_text, check_ids, read_columns


class Cuts(Config):
    """The moment of each user from which on events are the future."""

    source: str
    """Parquet file or folder with one row a user."""
    user: str
    """Integer column of the user."""
    column: str
    """Column of the cut, of the kind of the events' `time`."""


class HistoryConfig(Config):
    """Events of users, of which a prompt has those before the user's cut."""

    source: str
    """Parquet file or folder of the events, in any order."""
    user: str
    """Integer column of the user."""
    time: str
    """Number that orders a user's events."""
    cuts: Cuts
    item: str | None = None
    """Integer column of the item, to be described by `items`."""
    items: TextRows | None = None
    """Text of the items."""
    most: int = Field(default=50, gt=0)
    """Only the latest so many events before the cut are looked at."""
    future: Literal["refuse", "drop"] = "refuse"
    """What to do with an event that is not before the user's cut: stop, or leave it out."""


class History:
    """The events before the cuts, by user.

    Args:
        config: where they are.
        fields: columns of the events, or of the items, that are wanted as text.
        users: of these alone.

    Raises:
        ValueError: an event is of the future and `future` refuses it; a user has events and no cut,
            or two; a column is missing or has no ids.

    Attributes:
        dropped: how many events of the future were left out.
    """

    def __init__(self, config: HistoryConfig, fields: Iterable[str], users: Iterable[int]) -> None:
        self.config = config
        fields = list(fields)
        item = [config.item] if config.item else []
        own = [f for f in fields if f in _columns(config.source)]
        events = read_columns(config.source, [config.user, config.time, *item, *own])
        wanted = np.fromiter(users, np.int64)
        for column in (config.user, *item):
            check_ids(events, column, config.source, unique=False)
        events = events.filter(pa.array(np.isin(events[config.user].to_numpy(), wanted)))
        self.dropped = 0
        events = self._before_cuts(events)
        user, time = (events[name].to_numpy() for name in (config.user, config.time))
        order = np.lexsort((time, user))
        events, user = events.take(order), user[order].astype(np.int64)
        first = np.searchsorted(user, wanted, side="left")
        last = np.searchsorted(user, wanted, side="right")
        self._range = dict(zip(wanted.tolist(), zip(first, last, strict=True), strict=True))
        self._events, self._own = events, own
        self._fields = fields
        described = [f for f in fields if f not in own]
        self._described: dict[int, dict[str, str | None]] = {}
        if described:
            if config.items is None or config.item is None:
                raise ValueError(
                    f"{config.source}: column '{described[0]}' is missing; add it, or say by "
                    "history.item and history.items where items are described"
                )
            table = config.items.read(described)
            texts = [as_text(table[name]) for name in described]
            self._described = {
                key: dict(zip(described, row, strict=True))
                for key, *row in zip(table[config.items.key].to_pylist(), *texts, strict=True)
            }

    def of(self, user: int) -> list[dict[str, str | None]]:
        """The fields of the user's latest events before the cut, oldest first."""
        first, last = self._range[user]
        first = max(first, last - self.config.most)
        events = self._events.slice(first, last - first)
        found = [{} for _ in range(len(events))]
        for name in self._own:
            for event, text in zip(found, as_text(events[name]), strict=True):
                event[name] = text
        if self._described:
            nothing = dict.fromkeys(f for f in self._fields if f not in self._own)
            for event, item in zip(found, events[self.config.item].to_pylist(), strict=True):
                event.update(self._described.get(item, nothing))
        return found

    def _before_cuts(self, events: pa.Table) -> pa.Table:
        config = self.config
        users, times = (events[name].to_numpy() for name in (config.user, config.time))
        cuts = read_columns(config.cuts.source, [config.cuts.user, config.cuts.column])
        check_ids(cuts, config.cuts.user, config.cuts.source, unique=True)
        known = cuts[config.cuts.user].to_numpy().astype(np.int64)
        order = np.argsort(known, kind="stable")
        known, moments = known[order], cuts[config.cuts.column].to_numpy()[order]
        place = np.searchsorted(known, users)
        absent = (place == len(known)) | (known[np.minimum(place, len(known) - 1)] != users)
        if absent.any():
            raise ValueError(
                f"{config.cuts.source}: user {users[absent][0]} has events and no cut; give each "
                "user one"
            )
        future = ~(times < moments[place])  # also a time or a cut that is no number
        if future.any() and config.future == "refuse":
            row = int(np.flatnonzero(future)[0])
            item = f" ({config.item} {events[config.item][row]})" if config.item else ""
            raise ValueError(
                f"{config.source}: the event of user {users[row]} at {config.time} {times[row]}"
                f"{item} is not before the user's cut, {moments[place][row]}: a prompt must not "
                "know the future; leave such events out, or set history.future to drop"
            )
        self.dropped = int(future.sum())
        return events.filter(pa.array(~future))


def _columns(source: str) -> list[str]:
    return find(source, ["."])[0].schema.names
