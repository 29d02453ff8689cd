# SPDX-License-Identifier: Apache-2.0
"""What users did before a moment of their own: the only events that a prompt may know.

Each user has a *cut*, say the time of the first sample that a model is evaluated on. An event at
the cut or after it is the future. It stops the job and is named (`future: refuse`), before any
request is made, or is left out (`future: drop`) and counted.

Columns of a user's own row may be made of events too: counts, lists, an answer to another prompt.
So each that a template has must be said to know none (`static`), or the rows say up to when they
know (`rows_until`), which is held against the cut. What describes items, and what an event's own
columns know, is taken as it is.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    """Column of the cut, of the type of the events' `time`, and of its unit."""


class HistoryConfig(Config):
    """Events of users, of which a prompt has those before the user's cut."""

    source: str
    """Parquet file or folder of the events, in any order."""
    user: str
    """Integer column of the user."""
    time: str
    """Number, date or timestamp that orders a user's events."""
    cuts: Cuts
    item: str | None = None
    """Integer column of the item, to be described by `items`."""
    items: TextRows | None = None
    """Text of the items."""
    most: int = Field(default=50, gt=0)
    """Only the latest so many events before the cut are looked at."""
    future: Literal["refuse", "drop"] = "refuse"
    """What to do with an event that is not before the user's cut: stop, or leave it out."""
    static: list[str] = []  # noqa: RUF012
    """Columns of the users' rows that no event has made, such as a name."""
    rows_until: str | None = None
    """Column of the users' rows, of the type of `time`: when the latest event was that the other
    columns are made of; null for none. It must be before the user's cut."""

    def check_columns(self, name: str, columns: Iterable[str]) -> None:
        """Refuse columns of users' rows of which nobody has said what they know.

        Raises:
            ValueError: there is such a column in a template.
        """
        unknown = [column for column in columns if column not in self.static]
        if unknown and self.rows_until is None:
            raise ValueError(
                f"template {name}: the rows' column '{unknown[0]}' may be made of events after the "
                "cut; name it in history.static if no event has made it, or say by "
                "history.rows_until up to when the rows know events"
            )


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
        self._cuts = _Cuts(config)
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

    def check_rows(self, rows: TextRows) -> None:
        """Hold what the users' own rows are made of against the cuts.

        Raises:
            ValueError: a row knows the future, or a user has no cut.
        """
        until = self.config.rows_until
        if until is None:
            return
        table = read_columns(rows.source, [rows.key, until])
        self._cuts.require_type(rows.source, until, table.schema.field(until).type)
        table = table.filter(pc.is_valid(table[until]))  # pyright: ignore[reportAttributeAccessIssue]
        users, times = table[rows.key].to_numpy(), table[until].to_numpy()
        moments = self._cuts.of(users, "a row")
        future = np.flatnonzero(~(times < moments))
        if len(future):
            row = future[0]
            raise ValueError(
                f"{rows.source}: the row of user {users[row]} knows events up to {until} "
                f"{times[row]}, which is not before the user's cut, {moments[row]}: a prompt must "
                "not know the future; make the rows of earlier events"
            )

    def _before_cuts(self, events: pa.Table) -> pa.Table:
        config = self.config
        self._cuts.require_type(config.source, config.time, events.schema.field(config.time).type)
        users, times = (events[name].to_numpy() for name in (config.user, config.time))
        moments = self._cuts.of(users, "events")
        future = ~(times < moments)  # also a time or a cut that is no number
        if future.any() and config.future == "refuse":
            row = int(np.flatnonzero(future)[0])
            item = f" ({config.item} {events[config.item][row]})" if config.item else ""
            raise ValueError(
                f"{config.source}: the event of user {users[row]} at {config.time} {times[row]}"
                f"{item} is not before the user's cut, {moments[row]}: a prompt must not "
                "know the future; leave such events out, or set history.future to drop"
            )
        self.dropped = int(future.sum())
        return events.filter(pa.array(~future))


class _Cuts:
    """The moment of each user."""

    def __init__(self, config: HistoryConfig) -> None:
        self.config = config.cuts
        cuts = read_columns(self.config.source, [self.config.user, self.config.column])
        check_ids(cuts, self.config.user, self.config.source, unique=True)
        self._type = cuts.schema.field(self.config.column).type
        users = cuts[self.config.user].to_numpy().astype(np.int64)
        order = np.argsort(users, kind="stable")
        self._users, self._moments = users[order], cuts[self.config.column].to_numpy()[order]

    def require_type(self, source: str, column: str, found: pa.DataType) -> None:
        """Refuse times that cannot be held against the cuts: a day holds what comes after noon.

        Raises:
            ValueError: they are of another type.
        """
        if _kind(found) is None or _kind(found) != _kind(self._type):
            raise ValueError(
                f"{source}: column '{column}' is {found}, and {self.config.source}: column "
                f"'{self.config.column}' is {self._type}; both must be of one type, a number, a "
                "date or a timestamp, to tell what was before"
            )

    def of(self, users: np.ndarray, has: str) -> np.ndarray:
        """The cuts of some users.

        Raises:
            ValueError: a user has none.
        """
        place = np.searchsorted(self._users, users)
        found = self._users[np.minimum(place, len(self._users) - 1)]
        absent = (place == len(self._users)) | (found != users)
        if absent.any():
            raise ValueError(
                f"{self.config.source}: user {users[absent][0]} has {has} and no cut; give each "
                "user one"
            )
        return self._moments[place]


def _kind(found: pa.DataType) -> str | None:
    """What may be compared with each other: any integers, any fractions, dates or timestamps."""
    if pa.types.is_integer(found):
        return "integer"
    if pa.types.is_floating(found):
        return "fraction"
    return str(found) if pa.types.is_date(found) or pa.types.is_timestamp(found) else None


def _columns(source: str) -> list[str]:
    return find(source, ["."])[0].schema.names
