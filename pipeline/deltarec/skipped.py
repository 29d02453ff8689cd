# SPDX-License-Identifier: Apache-2.0
"""What `data.on_bad_file: skip` leaves out: counted over all ranks, each file named once."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from deltarec.data.reader import Reader
from deltarec.distributed import all_sum, world_size


class Skipped:
    """Counts batch by batch.

    A row that is read again, in another epoch, counts again, as it does among the samples trained.

    Args:
        reader: of the split.
        say: prints one line, on one rank.
        files: paths found damaged before, by the sessions that this one resumes.
        rows: rows lost before.
    """

    def __init__(
        self,
        reader: Reader,
        say: Callable[[str], None],
        files: Sequence[str] = (),
        rows: int = 0,
    ) -> None:
        self.reader = reader
        self.say = say
        self.enabled = reader.schema.on_bad_file == "skip"
        self.rows = rows
        self.files = set(files)
        self._named: set[str] = set()
        self._name(dict(reader.damage))

    def after_batch(self, lost: Counter[str]) -> int:
        """Count a batch; a collective where skipping is enabled.

        Args:
            lost: of this rank's share, by path.

        Returns:
            The samples that the global batch lost.
        """
        if not self.enabled:
            return 0
        total = int(all_sum(torch.tensor(lost.total())))
        if total:
            found: list[Any] = [None] * world_size()
            dist.all_gather_object(found, {path: self.reader.damage[path] for path in lost})
            for damage in found:
                self._name(damage)
        self.rows += total
        return total

    def summary(self) -> dict[str, int]:
        """Damaged files, left out in whole or in part; and the rows lost of the latter."""
        return {"files": len(self.files), "rows": self.rows}

    def logged(self) -> dict[str, Any]:
        """The same as metrics; nothing where rows cannot be lost."""
        if not self.enabled:
            return {}
        return {f"skipped_{name}": value for name, value in self.summary().items()}

    def _name(self, damage: dict[str, str]) -> None:
        for path, what in damage.items():
            if path not in self._named:
                self.say(f"skipped, as data.on_bad_file says: {path}: {what}")
        self._named.update(damage)
        self.files.update(damage)
