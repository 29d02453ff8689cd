# SPDX-License-Identifier: Apache-2.0
"""What stands right of the tables: one member for each role, made of its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from pydantic import model_validator
from torch import Tensor, nn

from deltarec.balancing.gradients import reached_by_one_task
from deltarec.config import Config, OneOf
from deltarec.data.batch import Batch
from deltarec.data.schema import Schema
from deltarec.embeddings.agent import Observed, context_features
from deltarec.embeddings.collections import (
    Embedded,
    embedded,
    fake_quantisers,
    shared_rows,
)
from deltarec.embeddings.policies import autoassigned
from deltarec.embeddings.tables import TableSpec
from deltarec.layers.batch_norm import set_real_samples
from deltarec.layers.dropout import RowDropout, sample_keys, set_sample_keys
from deltarec.layers.rows import occurrences, seeing
from deltarec.models import (
    GRAPH_ENCODERS,
    PAIR_MODELS,
    SCENARIO_MODULES,
    SCORERS,
    SEQUENCE_ENCODERS,
    TASK_HEADS,
    TEXT_ADAPTORS,
    TRUNKS,
)
from deltarec.models.alignment import AlignConfig, Alignment
from deltarec.models.hidden import without
from deltarec.models.losses import LossTerm
from deltarec.models.mean import MeanEncoder
from deltarec.models.pairs import PairNetwork
from deltarec.models.roles import (
    Fields,
    FieldShapes,
    GraphConfig,
    PairConfig,
    ScoreConfig,
    TextAdaptor,
)
from deltarec.models.scored_task import ScoredTask
from deltarec.models.single import NoScenario
from deltarec.text.language_model import LanguageModel, LanguageModelConfig
from deltarec.text.prompt import features_of


class ModelConfig(Config):
    """One member for each role; or a pair model alone, if the tasks are pairwise."""

    pair: Annotated[PairConfig, OneOf(PAIR_MODELS)] | None = None
    """Scores the query and the item of pairwise tasks."""
    graph: Annotated[GraphConfig, OneOf(GRAPH_ENCODERS)] | None = None
    """Makes vectors of users and items by what users did, for the pair model."""
    text: Annotated[Config, OneOf(TEXT_ADAPTORS)] | None = None
    """Makes fields of the vectors of frozen tables; the vectors themselves are, if not given."""
    language_model: LanguageModelConfig | None = None
    """Reads prompts while the job runs, for `align` and `score`; its own updates are in
    `train.optimizer.language_model`."""
    align: AlignConfig | None = None
    """Draws the trunk's representation and a text's together, the first of two stages; the second
    is a job without it that warm-starts from this one."""
    score: Annotated[ScoreConfig, OneOf(SCORERS)] | None = None
    """A logit of the language model's, averaged with that of the task heads."""
    sequence: Annotated[Config, OneOf(SEQUENCE_ENCODERS)] = MeanEncoder.Config(name="mean")
    """Encodes each sequence feature, with those aligned with it; with several, each has an encoder
    of its own."""
    trunk: Annotated[Config, OneOf(TRUNKS)] | None = None
    """Makes one representation of all fields and dense inputs."""
    scenario: Annotated[Config, OneOf(SCENARIO_MODULES)] = NoScenario.Config(name="none")
    """Makes the representation depend on the scenario."""
    heads: Annotated[Config, OneOf(TASK_HEADS)] | None = None
    """Makes the tasks' logits; of pairwise tasks, those of the pair model joined."""

    @model_validator(mode="after")
    def _whole(self) -> "ModelConfig":
        if self.pair is None and (self.trunk is None or self.heads is None):
            raise ValueError("needs 'trunk' and 'heads', or for pairwise tasks 'pair'")
        joined = self.pair is not None and self.pair.name == "joined"
        others = self.trunk is not None or (self.heads and not joined)
        others = others or self.sequence != MeanEncoder.Config(name="mean")
        others = others or self.scenario != NoScenario.Config(name="none")
        others = others or any(part is not None for part in (self.text, self.align, self.score))
        if self.pair is not None and others:
            raise ValueError(
                "'pair' is the whole model of pairwise tasks, with 'graph', and with 'heads' if it "
                "is joined; leave the rest out"
            )
        if joined and self.heads is None:
            raise ValueError("'pair' joined needs 'heads', such as {name: mmoe, …}")
        if self.graph is not None and self.pair is None:
            raise ValueError("'graph' is for pairwise tasks; give 'pair', or leave it out")
        if (self.language_model is None) != (not self.prompts):
            raise ValueError("'language_model' goes together with a prompt of 'align' or 'score'")
        return self

    @property
    def prompts(self) -> list[str]:
        """All prompts of the language model."""
        aligned = [self.align.prompt] if self.align and self.align.prompt else []
        return aligned + (self.score.prompts if self.score else [])

    @property
    def texts(self) -> list[str]:
        """Features that are text, and no fields of the trunk."""
        found = [*(self.align.vectors if self.align else [])]
        found += [name for prompt in self.prompts for name in features_of(prompt, "text")]
        return list(dict.fromkeys(found))


class Network(nn.Module):
    """Everything right of the tables: dense, and replicated on every rank.

    Args:
        config: the members.
        schema: features, tasks and scenarios.
        tables: for the widths of the fields.
        seed: of the dropout masks.
        bf16: whether to compute in bfloat16 where autocast allows it.
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        tables: Mapping[str, TableSpec],
        seed: int,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        assert config.trunk is not None and config.heads is not None
        trunk = config.trunk
        self.schema = schema
        self.seed = seed
        self.bf16 = bf16
        self.fake_quantisers = fake_quantisers(tables)
        self.dropouts = nn.ModuleDict({name: RowDropout(p) for name, p in schema.dropout.items()})
        self.shared = shared_rows(tables)
        self.observed: Observed | None = None
        """By the last forward in training, for the identity agent."""
        self.context = context_features(schema, tables, autoassigned(tables))
        self.text = None
        dims = {name: tables[schema.table(name)].dim for name in schema.sparse}
        dim_of = dict(dims)
        texts = config.texts
        self.adapted = [name for name in schema.frozen if name not in texts]
        if config.text is not None:
            used = sorted({schema.table(name) for name in self.adapted})
            widths = {table: tables[table].dim for table in used}
            self.text = TEXT_ADAPTORS[_name(config.text)](config.text, widths)
            dim_of |= dict.fromkeys(self.adapted, self.text.output_dim)
        self.encoders = _encoders(config, schema, dim_of)
        names = [n for n in schema.sparse if n not in schema.sequences and n not in texts]
        self.single = tuple(names)
        """Features with one vector a sample that are fields."""
        for name in self.encoders:
            names += schema.sequence_groups[name]
        widths = tuple(dim_of[name] for name in names)
        shapes = FieldShapes(widths, len(schema.dense), tuple(names))
        self.scenario = SCENARIO_MODULES[_name(config.scenario)](
            config.scenario,
            shapes,
            len(schema.scenario.values) if schema.scenario else 1,
            lambda inputs: TRUNKS[_name(trunk)](trunk, inputs),
        )
        self.heads = TASK_HEADS[_name(config.heads)](
            config.heads, self.scenario.output_dim, schema.tasks
        )
        self.language_model = None
        if config.language_model is not None:
            causal = config.score is not None and SCORERS[config.score.name].causal
            self.language_model = LanguageModel(config.language_model, causal)
        self.alignment = None
        if config.align is not None:
            self.alignment = Alignment(
                config.align, schema, dims, self.scenario.output_dim, self.language_model, texts
            )
        self.scorer = None
        if config.score is not None:
            assert self.language_model is not None
            self.scorer = ScoredTask(config.score, self.language_model, schema, dims)

    def forward(self, batch: Batch, outputs: list) -> Tensor:
        """What the heads give, `[B, C]`, from a batch and the outputs of its tables."""
        return self.represented(batch, outputs)[1]

    def represented(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor]:
        """The representation `[B, H]`, and what the heads make of it."""
        seen = self._see(batch, outputs)
        return seen.representation, seen.columns

    def aligned(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor]:
        """What the heads give, and this rank's shares of the losses of alignment, `[A]`."""
        assert self.alignment is not None
        seen = self._see(batch, outputs)
        shares = self.alignment(
            seen.found, batch, seen.representation, seen.hide, self.language_model
        )
        return seen.columns, shares

    def _see(self, batch: Batch, outputs: list) -> "_Seen":
        set_sample_keys(self, sample_keys(batch.index, self.seed, batch.epoch))
        set_real_samples(self, batch.index >= 0)
        # Leaves, which keep their gradients for the identity agent.
        leaf = torch.is_grad_enabled()
        actions = {
            name: ids.actions.detach().requires_grad_(leaf)
            for name, ids in batch.identities.items()
        }
        mixed = {
            name: partial(self.shared[self.schema.table(name)], actions=action)
            for name, action in actions.items()
        }
        found = embedded(self.schema, outputs, batch, self.fake_quantisers, mixed)
        if actions and leaf:
            self.observed = Observed(actions, self._context(found, batch))
        thinned = {name: dropout(found.pooled[name]) for name, dropout in self.dropouts.items()}
        adapted = replace(found, pooled=found.pooled | thinned)
        autocast = torch.autocast(batch.dense.device.type, torch.bfloat16, enabled=self.bf16)
        if self.text is not None:
            with autocast:
                adapted = self._adapted(adapted, self.text)

        def represent(vectors: Embedded) -> Tensor:
            with autocast:
                fields = Fields(list(self._fields(vectors).values()), batch.dense)
                return self.scenario(fields, batch.scenario)

        def hide(hidden: Mapping[str, Tensor]) -> Tensor:
            return represent(without(adapted, batch, self.schema, hidden))

        representation = represent(adapted)
        with autocast:
            columns = self.heads(representation)
        if self.scorer is not None:
            columns = self.scorer(columns, self.language_model, found, batch.index)
        return _Seen(found, hide, representation, columns)

    def _fields(self, found: Embedded) -> dict[str, Tensor]:
        """The vectors of the trunk's fields, one a sample: encoded, where they are sequences."""
        vectors = {name: found.pooled[name] for name in self.single}
        for name, encoder in self.encoders.items():
            target = self.schema.sequences[name].target
            names = self.schema.sequence_groups[name]
            group = [found.sequences[other] for other in names]
            encoded = encoder(found.pooled[target] if target else None, group)
            vectors |= zip(names, encoded, strict=True)
        return vectors

    def _context(self, found: Embedded, batch: Batch) -> Tensor:
        """What the agent's critics see of a sample's other features, `[B, C]`."""
        means = [
            torch.stack([found.pooled[name].detach() for name in names]).mean(0)
            for names in self.context.values()
        ]
        return torch.cat([batch.dense, *means], 1)

    def _adapted(self, found: Embedded, text: TextAdaptor) -> Embedded:
        """The looked-up vectors, those of frozen tables made fields or sequences of fields."""
        schema = self.schema
        pooled, sequences = dict(found.pooled), dict(found.sequences)
        for use, name in enumerate(self.adapted):
            if name in sequences:
                values = sequences[name].values
                rows, place = occurrences(sequences[name].lengths, len(values))
            else:
                values = pooled[name]
                rows = torch.arange(len(values), device=values.device)
                place = torch.zeros_like(rows)
            # Each use of the adaptor has its own dropout, whatever else the sample has.
            with seeing(text, rows, place + (use << 32)):
                adapted = text(schema.table(name), values)
            if name in sequences:
                sequences[name] = replace(sequences[name], values=adapted)
            else:
                pooled[name] = adapted
        return replace(found, pooled=pooled, sequences=sequences)

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        """The terms of the tasks' losses; as in `TaskHeads.losses`."""
        return self.heads.losses(columns, labels, mask)

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that one task alone reaches."""
        own, columns = reached_by_one_task(
            self.heads, len(self.schema.tasks), self.scenario.output_dim
        )
        if self.scorer is not None and columns and columns[self.scorer.task]:
            asking = [self.scorer, self.language_model] if self.alignment is None else [self.scorer]
            own += [p for part in asking for p in part.parameters() if p.requires_grad]
        return own


def _encoders(config: ModelConfig, schema: Schema, dim_of: Mapping[str, int]) -> nn.ModuleDict:
    """One for each sequence that is no text, with those aligned with it."""
    encoder = SEQUENCE_ENCODERS[_name(config.sequence)]
    return nn.ModuleDict(
        {
            name: encoder(
                config.sequence, dim_of[name], names, schema.sequences[name].target is not None
            )
            for name, names in schema.sequence_groups.items()
            if name not in config.texts
        }
    )


@dataclass(frozen=True)
class _Seen:
    """What a network has made of a batch."""

    found: Embedded
    hide: Callable[[Mapping[str, Tensor]], Tensor]
    """The representation without some samples' ids, as in `without`."""
    representation: Tensor
    columns: Tensor


def network_of(
    config: ModelConfig,
    schema: Schema,
    tables: Mapping[str, TableSpec],
    seed: int,
    bf16: bool = False,
) -> Network | PairNetwork:
    """The configured one; arguments as in `Network`."""
    if config.pair is None:
        return Network(config, schema, tables, seed, bf16)
    return PairNetwork(config.pair, schema, tables, seed, bf16, config.graph, config.heads)


def _name(config: Config) -> str:
    return config.name  # pyright: ignore[reportAttributeAccessIssue]  # every member's has one
