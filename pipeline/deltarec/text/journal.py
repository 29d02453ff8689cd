# SPDX-License-Identifier: Apache-2.0
"""Answers that have been paid for, in a file that only grows.

One JSON object a line, on the disk before the answer is used. A job that is killed while it writes
leaves at most one torn line at the end, which the next one cuts off. A lock keeps two jobs from
writing the same journal.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


class Journal:
    """Lines by key, in memory only their places.

    Args:
        path: of the file, made at the first line.

    Raises:
        ValueError: another process has the journal, or a line in the middle is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file_lock = FileLock(f"{path}.lock")
        try:
            self._file_lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{path}: another job writes this journal; wait for its end") from None
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._places: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        for place, line in self._lines():
            self._places[line["key"]] = place
            self._counts[line["key"]] += 1

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The latest line of the key."""
        with self._lock:
            self._file.seek(self._places[key])
            return json.loads(self._file.readline())

    def count(self, key: str) -> int:
        """How many lines the key has."""
        return self._counts[key]

    def append(self, line: dict[str, Any]) -> None:
        """Add a line, which has a `key`; it is on the disk when this returns."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with self._lock:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._places[line["key"]] = place
            self._counts[line["key"]] += 1

    def close(self) -> None:
        self._file.close()
        self._file_lock.release()

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self._file.seek(0)
        place = 0
        for number, data in enumerate(self._file, start=1):
            if not data.endswith(b"\n"):
                self._file.truncate(place)
                return
            try:
                line = json.loads(data)
                if not isinstance(line, dict) or not isinstance(line.get("key"), str):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{self.path}:{number}: not a line of a journal; remove this line"
                ) from None
            yield place, line
            place += len(data)
