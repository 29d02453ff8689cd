# SPDX-License-Identifier: Apache-2.0
"""Checksums of a checkpoint's files: what was written is what is read, or the job stops.

Without them a flipped bit in a tensor is a wrong number that nobody sees. CRC32 of zlib: it need
not withstand an attacker, and runs at about the speed of a disk (`docs/decisions.md`).
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch.distributed as dist

from deltarec.distributed import rank, world_size
from deltarec.supervision import Watchdog

FILE = "checksums.json"
PIECE_BYTES = 16 << 20


def of_all_ranks(mine: dict[str, int], group: dist.ProcessGroup) -> dict[str, int]:
    """The checksums of every rank's files, by name; a collective of the group."""
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, mine, group=group)
    return {name: value for part in found for name, value in sorted(part.items())}


def of_file(path: Path, watchdog: Watchdog | None = None) -> int:
    """The checksum of a file's content.

    Raises:
        OSError: it cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            value = zlib.crc32(piece, value)
            if watchdog is not None:
                watchdog.beat()
    return value


def verify(folder: Path, watchdog: Watchdog | None = None) -> None:
    """Compare every file with its checksum; the ranks share the files. A collective of all ranks.

    Raises:
        ValueError: a file is missing or not what was written, on all ranks.
    """
    problems: list[Any] = [None] * world_size()
    dist.all_gather_object(problems, _problem(folder, watchdog))
    for problem in problems:
        if problem is not None:
            raise ValueError(
                f"{problem}; let 'latest' name another checkpoint, or remove the folder"
            )


def _problem(folder: Path, watchdog: Watchdog | None) -> str | None:
    path = folder / FILE
    try:
        expected = json.loads(path.read_text())
        for name in sorted(expected)[rank() :: world_size()]:
            path = folder / name
            if of_file(path, watchdog) != expected[name]:
                return f"{path}: this checkpoint is damaged: not the bytes that were written"
    except (OSError, ValueError, TypeError) as error:
        return f"{path}: this checkpoint cannot be read: {error}"
    return None
