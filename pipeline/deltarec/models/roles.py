# SPDX-License-Identifier: Apache-2.0
"""The roles of a ranking model, each an interface; any member of one works with any of the others.

    text adaptor ─► sequence encoder ─► trunk, conditioned by a scenario module ─► task heads
    graph encoder ─► pair model, for pairwise tasks
    language model ─► alignment losses, beside the trunk; scorer, beside the task heads

A member is a class with a `Config`, in a file of its own, listed in `models/__init__.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from deltarec.config import Config
from deltarec.data.schema import Task
from deltarec.data.subgraphs import SubgraphConfig
from deltarec.embeddings.collections import Embedded, JaggedSequence
from deltarec.layers.graph import Adjacency, Normalisation
from deltarec.layers.mlp import Adapt
from deltarec.models.losses import LossTerm, direct_terms
from deltarec.text.language_model import LanguageModel
from deltarec.text.prompt import Prompt


@dataclass(frozen=True)
class FieldShapes:
    """What a trunk is built for."""

    dims: tuple[int, ...]
    """Width of each field."""
    num_dense: int
    names: tuple[str, ...] = ()
    """Of the fields, for members that tell some of them apart."""

    @property
    def width(self) -> int:
        """Width of all fields and dense inputs side by side."""
        return sum(self.dims) + self.num_dense

    def common_dim(self, key: str) -> int:
        """The one width of all fields.

        Args:
            key: of the configuration, of the part that needs it.

        Raises:
            ValueError: the widths differ, or there are no fields.
        """
        if not self.dims:
            raise ValueError(f"{key}: needs sparse features, there are none; choose another")
        if len(set(self.dims)) != 1:
            raise ValueError(
                f"{key}: needs fields of one dimension, these have {sorted(set(self.dims))}; "
                "give the tables one dim, or choose another"
            )
        return self.dims[0]


@dataclass(frozen=True)
class Fields:
    """The inputs of a trunk: one vector for each field, and the dense features."""

    vectors: Sequence[Tensor]
    """F tensors `[B, D_f]`"""
    dense: Tensor
    """`[B, N]`"""

    def flat(self) -> Tensor:
        """All side by side: `[B, sum D_f + N]`."""
        return torch.cat([*self.vectors, self.dense], dim=1)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Fields":
        """The same fields after a change to all side by side, `[B, sum D_f + N]` to the same."""
        dims = [vector.shape[1] for vector in self.vectors]
        *vectors, dense = change(self.flat()).split([*dims, self.dense.shape[1]], dim=1)
        return Fields(vectors, dense)

    def stacked(self) -> Tensor:
        """Fields of equal width: `[B, F, D]`."""
        return torch.stack(list(self.vectors), dim=1)


class Member(nn.Module, ABC):
    """A member of a role; its `Config` has its options and a literal `name`, its registry key."""

    Config: type[Config]


class TextAdaptor(Member):
    """Vectors of frozen tables, such as an encoder's of text, to fields of one width.

    Args:
        config: the member's options.
        dims: width of each frozen table, by name. Features that share a table share what adapts it.
    """

    output_dim: int
    reads_codes: bool = False
    """Whether the tables hold whole numbers that name something, which cannot be pooled."""

    def __init__(self, config: Any, dims: Mapping[str, int]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, table: str, vectors: Tensor) -> Tensor:
        """Rows of a table `[n, D]` to `[n, output_dim]`; zeros are those of an unknown id."""


class SequenceEncoder(Member):
    """A sequence of vectors, and those aligned with it, to one vector each, seen by the target.

    Args:
        config: the member's options.
        dim: D, of all vectors.
        names: of the features, the one that the others are aligned with first.
        has_target: whether they have a target.
    """

    def __init__(self, config: Any, dim: int, names: Sequence[str], has_target: bool) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, target: Tensor | None, sequences: Sequence[JaggedSequence]) -> list[Tensor]:
        """Target `[B, D]` and sequences to a vector `[B, D]` each; empty ones give zeros."""


class Trunk(Member):
    """Fields and dense inputs to one representation `[B, output_dim]`."""

    output_dim: int
    widths: tuple[int, ...] = ()
    """Of the deep part's levels, its input and its layers: what a scenario module may adapt."""

    def __init__(self, config: Any, shapes: FieldShapes) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fields: Fields, adapt: Adapt | None = None) -> Tensor:
        """`adapt` may change each level of the deep part, of the width that `widths` says."""


class ScenarioModule(Member):
    """Makes the representation depend on the scenario; owns the trunk, or trunks, it conditions."""

    output_dim: int

    def __init__(
        self,
        config: Any,
        shapes: FieldShapes,
        num_scenarios: int,
        make_trunk: Callable[[FieldShapes], Trunk],
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fields: Fields, scenario: Tensor) -> Tensor:
        """Fields and scenario `[B]` to `[B, output_dim]`."""


class TaskHeads(Member):
    """A representation to one logit for each task, and to the tasks' losses.

    For a task with a parent (`given`) the logit is that of its probability where the parent is
    positive, whatever the head; `models/cascade.py` has the rest about chains.

    Args:
        config: the member's options.
        input_dim: width of the representation.
        tasks: by name, in the order of their logits.
    """

    def __init__(self, config: Any, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.tasks = list(tasks.values())

    @abstractmethod
    def forward(self, representation: Tensor) -> Tensor:
        """`[B, H]` to `[B, C]`: the T tasks' logits, then what the head's own losses need."""

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        """The terms of the tasks' losses, at least one for each task.

        Args:
            columns: `[B, C]` in float32 or wider, what `forward` gave.
            labels: `[B, T]`.
            mask: bool `[B, T]`, which samples each task lives on.
        """
        return direct_terms(self.tasks, columns, labels, mask)


@dataclass(frozen=True)
class ViewShapes:
    """What an alignment loss is built for."""

    representation: int
    """Width of the representation."""
    text: int
    """Width of a text's states."""
    fields: Mapping[str, int]
    """Width of the vector of each feature that may be hidden."""


@dataclass(frozen=True)
class Features:
    """A batch's samples as features."""

    representation: Tensor
    """`[B, H]`, of the trunk."""
    vectors: Mapping[str, Tensor]
    """Of each feature that may be hidden its vectors `[B, D_f]`."""
    ids: Mapping[str, Tensor]
    """Likewise its ids int64 `[B]`, -1 for none."""
    hide: Callable[[Mapping[str, Tensor]], Tensor]
    """The representation without some ids: of some of these features, which samples' ids are not
    to be seen, bool `[B]`."""


@dataclass(frozen=True)
class Tokens:
    """What texts are made of."""

    numbers: Tensor
    """Int64 `[B, T]`, of the texts of features; negative where there is something else."""
    vocabulary: Tensor
    """`[V, D]`, the embeddings of all tokens."""
    read: Callable[[Tensor, Tensor], Tensor]
    """The states with the embeddings of some tokens, bool `[B, T]`, replaced by one, `[D]`."""


@dataclass(frozen=True)
class Text:
    """A batch's samples as text, in float32."""

    states: Tensor
    """`[B, T, D]`, of the tokens."""
    mask: Tensor
    """Bool `[B, T]`: which tokens there are."""
    pooled: Tensor
    """`[B, D]`."""
    hashes: Tensor
    """Int64 `[B]`, equal for equal texts."""
    present: Tensor
    """Bool `[B]`: which samples have any text."""
    tokens: Tokens | None = None
    """None where a text is but one vector."""


@dataclass(frozen=True)
class Views:
    """A batch's samples seen twice."""

    features: Features
    text: Text
    real: Tensor
    """Bool `[B]`: samples that are no padding, and have a text."""


class AlignmentLoss(Member):
    """Draws what features and text make of the same samples together.

    Args:
        config: the member's options.
        shapes: of what it sees.
    """

    reads_tokens: bool = False
    """Whether it needs texts made of tokens."""

    def __init__(self, config: Any, shapes: ViewShapes) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, views: Views) -> Tensor:
        """This rank's share of the loss, a mean over samples of all ranks (`share_of_mean`)."""


class ScoreConfig(Config):
    """What all scorers have."""

    name: str
    task: str | None = None
    """Whose logit it is averaged with; the first one's if not given."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Of the scorer's logit in the average, at the beginning; it is learned."""

    @property
    def prompts(self) -> list[str]:
        """All prompts of the scorer."""
        raise NotImplementedError


class Scorer(Member):
    """A sample's text, read by the job's language model, to the logit of one task.

    Args:
        config: the member's options, a `ScoreConfig`.
        language_model: that reads the prompts.
        make_prompt: from a prompt's text to what makes it of a batch.
    """

    causal: bool = False
    """Whether the model's probabilities of next tokens are wanted."""

    def __init__(
        self,
        config: Any,
        language_model: LanguageModel,
        make_prompt: Callable[[str], Prompt],
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, language_model: LanguageModel, found: Embedded, index: Tensor) -> Tensor:
        """Looked-up vectors and indices `[B]` of samples to logits `[B]`."""


@dataclass(frozen=True)
class Side:
    """What one of the two is described by: the query of a pairwise task, or its item."""

    tables: tuple[str, ...]
    """Of its features, the id's first; sides of the same tables are of the same kind."""
    shapes: FieldShapes
    behaviours: tuple[str, ...] = ()
    """Of a side that is a node of a graph: what the vectors side by side in its field belong to."""


class GraphConfig(Config):
    """What all graph encoders have."""

    name: str
    user: str
    """The id feature of users; the rows of its table are nodes."""
    behaviours: list[str] = Field(min_length=1)
    """Id features of items, of one table, whose rows are nodes too. A row of `data.events` that has
    the user and one of these is an edge of that behaviour's graph."""
    layers: int = Field(default=2, gt=0)
    normalise: Normalisation = "left"
    """Of a graph by its nodes' degrees: of rows, of columns, of both, or not."""
    hide_targets: bool = False
    """Train each batch on graphs that lack the edges of its own samples, as the graphs lack those
    of the samples to be predicted: else a model learns to find again what the graph shows it."""
    subgraph: SubgraphConfig | None = None
    """Train each batch on a sub-graph drawn for it, for graphs too large to go through at every
    step; evaluations see the whole graph."""


class GraphEncoder(Member):
    """The nodes of a graph to one vector for each behaviour.

    Args:
        config: the member's options.
        dim: D, of the nodes.
        num_behaviours: K.
    """

    def __init__(self, config: Any, dim: int, num_behaviours: int) -> None:
        super().__init__()
        self.layers: int = config.layers
        self.output_dim = dim

    @abstractmethod
    def forward(self, nodes: Tensor, graphs: Sequence[Adjacency]) -> Tensor:
        """Nodes `[N, D]` and K graphs to `[N, K, output_dim]`."""


class PairConfig(Config):
    """What all pair models have."""

    name: str
    l2: float = Field(default=0.0, ge=0)
    """Times half the squared length of the vectors that a sample looks up, the negatives' too, is
    added to its loss."""


class PairModel(Member):
    """A query and an item to one vector each, and those to a score: their inner product.

    A table may serve both sides, of one task (users and their friends) or of several.

    Args:
        config: the member's options.
        sides: the query's and the item's of each task.
    """

    numbers_per_score: int = 1
    """That `scores` holds at a time, about."""
    heads: nn.Module
    """Task heads that score, where `heads_dim` asks for them: set after construction."""
    heads_dim: int = 0
    """The width of their input; 0 for no heads."""

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__()

    @abstractmethod
    def query(self, task: str, fields: Fields) -> Tensor:
        """The vectors of queries, `[n, D]`."""

    @abstractmethod
    def item(self, task: str, fields: Fields) -> Tensor:
        """The vectors of items, `[n, D]`."""

    def score(self, task: str, query: Tensor, item: Tensor) -> Tensor:
        """The scores `[n]` of n pairs of vectors."""
        return (query * item).sum(1)

    def scores(self, task: str, queries: Tensor, items: Tensor) -> Tensor:
        """The scores `[q, m]` of all pairs of q queries with m items."""
        return queries @ items.T

    def reached(self, task: str) -> list[nn.Parameter]:
        """The parameters that the task's loss depends on."""
        return list(self.parameters())


def behaviours_of(part: str, sides: Mapping[str, tuple[Side, Side]]) -> tuple[int, int]:
    """How many behaviours the sides' vectors are of, and the width of each.

    Raises:
        ValueError: a side is not a node of the graph and nothing else; `part` needs that.
    """
    for task, pair in sides.items():
        for side in pair:
            if not side.behaviours or len(side.tables) != 1 or side.shapes.num_dense:
                raise ValueError(
                    f"tasks.{task}: model.pair {part} takes the vectors of a graph's nodes alone; "
                    "set model.graph, and name nothing but its features"
                )
    side = next(iter(sides.values()))[0]
    return len(side.behaviours), side.shapes.width // len(side.behaviours)


def merged(vectors: Tensor, num_behaviours: int) -> Tensor:
    """The sum over the behaviours: `[n, K·D]` to `[n, D]`."""
    return vectors.view(len(vectors), num_behaviours, -1).sum(1)
