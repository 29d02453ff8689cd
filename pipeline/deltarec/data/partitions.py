# SPDX-License-Identifier: Apache-2.0
"""Data that come in folders by time: `date=2026-11-01/hour=03`, in chronological order.

A partition is a folder whose name ends with parts `key=value`. Values are compared as numbers where
they are whole numbers, as text otherwise, so dates are to be written as 2026-11-01. A partition is
whole when a marker lies in its folder, which its writer makes last.
"""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from deltarec.config import Config
from deltarec.data.files import listing


class StreamConfig(Config):
    """Trains on partitions in the order of time, each scored before it is trained on."""

    warmup: int = Field(default=0, ge=0)
    """The first so many partitions are trained on and not scored."""
    marker: str | None = "_SUCCESS"
    """A partition is whole when a file of this name lies in its folder; null takes every folder to
    be whole."""
    on_late: Literal["stop", "train"] = "stop"
    """What to do with a partition that appears after a later one has been trained on."""
    poll_seconds: float = Field(default=10.0, gt=0)
    """Of `train --watch`: time between two looks for new partitions."""
    idle_seconds: float | None = Field(default=None, gt=0)
    """Of `train --watch`: end after so long without a new partition; never if not given."""
    end: str = "_END"
    """Of `train --watch`: end when a file of this name lies in the data's folder and all whole
    partitions have been trained on."""


class Partition(NamedTuple):
    """A folder of files."""

    name: str
    """Its path under the data's folder."""
    is_whole: bool
    """Whether its marker is there."""


def partitions(source: str, patterns: Sequence[str], marker: str | None) -> list[Partition]:
    """All partitions that the patterns name, in chronological order.

    Raises:
        ValueError: a file is in no partition, or the storage cannot be listed.
    """
    folders: dict[str, list[str]] = {}
    for path in listing(source, patterns):
        parts = path.split("/")
        last = max((i for i, part in enumerate(parts[:-1]) if "=" in part), default=None)
        if last is not None:
            folders.setdefault("/".join(parts[: last + 1]), []).append("/".join(parts[last + 1 :]))
        elif not _is_hidden(parts):
            raise ValueError(
                f"{source}/{path}: is in no folder by time such as date=2026-11-01, as stream "
                "needs; name other files in data.train"
            )
    found = [
        Partition(name, is_whole=marker is None or marker in files)
        for name, files in folders.items()
    ]
    return sorted(found, key=lambda partition: _place(partition.name))


def following(
    found: Sequence[Partition], done: Collection[str], config: StreamConfig
) -> Partition | None:
    """The partition to train on next; None where there is none, or it is not yet whole.

    Raises:
        ValueError: it is earlier than one that is done, and `on_late` is `stop`.
    """
    upcoming = next((partition for partition in found if partition.name not in done), None)
    if upcoming is None or not upcoming.is_whole:
        return None
    last = max(done, key=_place, default=None)
    if last is not None and _place(upcoming.name) < _place(last) and config.on_late == "stop":
        raise ValueError(
            f"{upcoming.name}: this partition appeared after {last} was trained on; remove it, or "
            "set stream.on_late to train"
        )
    return upcoming


def _place(name: str) -> list[tuple[int, int | str]]:
    """What partitions are sorted by."""
    values = [part.partition("=")[2] for part in name.split("/") if "=" in part]
    return [(0, int(value)) if value.isdecimal() else (1, value) for value in values]


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part[0] in "._" for part in parts)
