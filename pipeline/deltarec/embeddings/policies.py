# SPDX-License-Identifier: Apache-2.0
"""How the ids of a table get rows: one configuration a policy, and what each needs."""

from typing import Literal

from pydantic import Field

from deltarec.config import Config
from deltarec_kernels import Policy


class FixedRows(Config):
    """Ids are rows, 0 to rows - 1; nothing is assigned."""

    policy: Literal["table"]


class HashedRows(Config):
    """Any 64-bit id gets the row that its hash names: ids share rows, and no state is kept."""

    policy: Literal["hash"]


class OwnRows(Config):
    """Any 64-bit id may get a row of its own, and those without one share row 0."""

    buckets: int = Field(default=24, gt=0)
    """The rows are cut into so many parts, among which a hash divides the ids; a multiple of the
    number of processes, and what is trained depends on it. Rows are rounded down to a multiple."""
    admit_after: int = Field(default=1, gt=0)
    """An id gets a row when it is seen so often; before that it shares row 0."""
    candidates: int | None = Field(default=None, gt=0)
    """How many ids can wait for a row, the ones seen longest ago being forgotten; as many as there
    are rows if not given."""

    def check(self, table: str, num_ranks: int) -> None:
        """Find out whether so many ranks can share the buckets.

        Raises:
            ValueError: they cannot.
        """
        if self.buckets % num_ranks:
            raise ValueError(
                f"embedding.tables.{table}.assignment.buckets is {self.buckets}, which {num_ranks} "
                f"processes cannot divide; set it to a multiple, such as "
                f"{num_ranks * -(-24 // num_ranks)}"
            )

    def for_kernels(self) -> Policy:
        """The same policy of our own kernels."""
        raise NotImplementedError


class FrequencyFilter(OwnRows):
    """Ids get rows when they are seen often enough, and keep them for ever."""

    policy: Literal["frequency"]
    admit_after: int = Field(default=5, gt=1)
    """An id gets a row when it is seen so often; before that it shares row 0."""

    def for_kernels(self) -> Policy:
        return Policy("none", admit_after=self.admit_after)


class LRU(OwnRows):
    """A new id takes the row of the one that was seen longest ago."""

    policy: Literal["lru"]

    def for_kernels(self) -> Policy:
        return Policy("lru", admit_after=self.admit_after)


class LFU(OwnRows):
    """A new id takes the row of the one that was seen least often."""

    policy: Literal["lfu"]
    ageing: bool = True
    """Whether sightings count the less the longer ago they are: LFU with dynamic ageing, where a
    sighting lifts an id above the score that the last evicted one had."""

    def for_kernels(self) -> Policy:
        return Policy("lfu", ageing=self.ageing, admit_after=self.admit_after)


class Timed(OwnRows):
    """An id loses its row when it is not seen for a time, and new ids get free rows only."""

    policy: Literal["timed"]
    unseen_steps: int = Field(gt=0)
    """The time, in training steps."""

    def for_kernels(self) -> Policy:
        return Policy("timed", horizon=self.unseen_steps, admit_after=self.admit_after)


ASSIGNMENTS: dict[str, type[Config]] = {
    "table": FixedRows,
    "hash": HashedRows,
    "frequency": FrequencyFilter,
    "lru": LRU,
    "lfu": LFU,
    "timed": Timed,
}
