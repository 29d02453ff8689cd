# SPDX-License-Identifier: Apache-2.0
"""How the ids of a table get rows: one configuration a policy, and what each needs."""

from collections.abc import Mapping
from typing import Literal, Protocol

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

    def first_std(self, init_std: float) -> float:
        """The deviation of the vectors that rows start from; as the table's, if not said."""
        return init_std

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


class AutoAssign(OwnRows):
    """An agent decides which ids get rows and keep them; the others share a few vectors.

    The id is known before it has a row: `candidates` says of how many more ids than there are rows
    the agent keeps what it knows.
    """

    policy: Literal["autoassign"]
    admit_after: int = Field(default=1, gt=0)
    """An id can get a row when it is seen so often; before that, it is what the shared vectors make
    of it."""
    shared: int = Field(default=16, gt=0)
    """Vectors that the ids share, of which those without a row are mixtures; 1 is a row for all
    unknown ids."""
    hard: Literal["never", "serving", "always"] = "never"
    """When an id's own row counts whole or not at all, whichever is nearer."""
    start: Literal["shared", "random"] = "shared"
    """Whether an id with a new row is still what the shared vectors make of it, the row being zero,
    or the row starts at random."""
    retention: Literal["agent", "frequency"] = "agent"
    """Whether the agent says how much an id's own row counts, and so whether it keeps it; or it
    counts alone, and ids keep their rows while there is room."""
    promote_at: float = Field(default=0.5, ge=0, le=1)
    """An id gets a row from this retention on."""
    evict_below: float = Field(default=0.3, ge=0, le=1)
    """An id loses its row when the moving average of its retention is lower."""
    average: float = Field(default=0.9, ge=0, lt=1)
    """How much of the average is kept after each partition."""
    evict: Literal["agent", "lru", "lfu"] = "lfu"
    """Who loses a row first, as others come: the id of the lowest average, the one that was seen
    longest ago, or least often."""

    def first_std(self, init_std: float) -> float:
        """Rows are what is added to the shared vectors' mixture: 0, unless they start at random."""
        return init_std if self.start == "random" else 0.0

    def for_kernels(self) -> Policy:
        """Of what the agent knows of ids, not of their rows."""
        return Policy("lfu", ageing=True)


class AgentConfig(Config):
    """How the identity agent of tables with `policy: autoassign` learns."""

    gamma: float = Field(default=0.0, ge=0, lt=1)
    """How much a user's next sample counts; 0 is a contextual bandit. Above 0 it needs
    `data.user`."""
    critic: bool = True
    """Whether there are critics; without them the actor learns of the loss's gradient alone."""
    bce: float = Field(default=10.0, ge=0)
    """λ, the weight of the loss's gradient in the actor's."""
    trust: float = Field(default=1.0, ge=0)
    """c, what holds the actor to the actions that the gradient was taken at."""
    row_price: float = Field(default=0.001, ge=0)
    """β, what a row costs, in units of the loss; the higher, the fewer ids keep rows."""
    noise: float = Field(default=0.02, ge=0, le=1)
    """How far actions in training are from the actor's."""
    actor_lr: float = Field(default=1e-3, gt=0)
    critic_lr: float = Field(default=1e-3, gt=0)
    follow: float = Field(default=0.2, gt=0, le=1)
    """τ, how far the slow copies go after actor and critics at every second update."""
    batch_size: int = Field(default=256, gt=0)
    """Transitions of an update."""
    update_every: int = Field(default=4, gt=0)
    """After a partition there is one update for so many of its training steps."""
    warmup: int = Field(default=5, ge=0)
    """Partitions after which the critics alone learn."""
    replay: int = Field(default=20_000, gt=0)
    """Transitions that are kept."""


ASSIGNMENTS: dict[str, type[Config]] = {
    "table": FixedRows,
    "hash": HashedRows,
    "frequency": FrequencyFilter,
    "lru": LRU,
    "lfu": LFU,
    "timed": Timed,
    "autoassign": AutoAssign,
}


class Assigned(Protocol):
    """A table, as configured or as resolved."""

    @property
    def assignment(self) -> Config | None: ...


def autoassigned(tables: Mapping[str, Assigned]) -> dict[str, AutoAssign]:
    """The tables whose ids the identity agent looks after, with what they say of it."""
    found = {name: table.assignment for name, table in tables.items()}
    return {name: policy for name, policy in found.items() if isinstance(policy, AutoAssign)}
