# SPDX-License-Identifier: Apache-2.0
"""A ranking model: tables, then a network of one member for each role, then losses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from deltarec.balancing.balancer import Balancer, GradientBalancer, SampleBalancer
from deltarec.balancing.gradients import GradientBoundary, reached_by_one_task
from deltarec.config import Config, OneOf
from deltarec.data.batch import Batch
from deltarec.data.schema import Schema, Task
from deltarec.distributed import all_sum
from deltarec.embeddings.agent import Observed, context_features
from deltarec.embeddings.assignment import Assignments
from deltarec.embeddings.collections import (
    Embedded,
    EmbeddingTables,
    embedded,
    fake_quantisers,
    shared_rows,
)
from deltarec.embeddings.policies import AutoAssign
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
        policies = {n: p for n, t in tables.items() if isinstance(p := t.assignment, AutoAssign)}
        self.context = context_features(schema, tables, policies)
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
        encoder = SEQUENCE_ENCODERS[_name(config.sequence)]
        self.encoders = nn.ModuleDict(
            {
                name: encoder(
                    config.sequence,
                    dim_of[name],
                    names,
                    schema.sequences[name].target is not None,
                )
                for name, names in schema.sequence_groups.items()
                if name not in texts
            }
        )
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
            seen.found, batch, seen.representation, seen.represent, self.language_model
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
        with autocast:
            if self.text is not None:
                adapted = self._adapted(adapted, self.text)
            vectors = {name: adapted.pooled[name] for name in self.single}
            for name, encoder in self.encoders.items():
                target = self.schema.sequences[name].target
                names = self.schema.sequence_groups[name]
                group = [adapted.sequences[other] for other in names]
                encoded = encoder(adapted.pooled[target] if target else None, group)
                vectors |= zip(names, encoded, strict=True)

        def represent(replaced: Mapping[str, Tensor]) -> Tensor:
            fields = Fields(list((vectors | dict(replaced)).values()), batch.dense)
            with autocast:
                return self.scenario(fields, batch.scenario)

        representation = represent({})
        with autocast:
            columns = self.heads(representation)
        if self.scorer is not None:
            columns = self.scorer(columns, self.language_model, found, batch.index)
        return _Seen(found, represent, representation, columns)

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

    def shared_vectors(self) -> dict[str, Tensor]:
        """What the ids of a table share that have no row, `[K, dim]`, by table."""
        return {name: shared.vectors for name, shared in self.shared.items()}  # pyright: ignore

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that one task alone reaches."""
        return reached_by_one_task(self.heads, len(self.schema.tasks), self.scenario.output_dim)


@dataclass(frozen=True)
class _Seen:
    """What a network has made of a batch."""

    found: Embedded
    represent: Callable[[Mapping[str, Tensor]], Tensor]
    """The representation with the vectors of some fields replaced."""
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


class RankingModel(nn.Module):
    """The whole model, as TorchRec's pipelines want it: a batch to (losses, output).

    `tables` reads nothing but the batch's attributes, so that a pipeline can start its exchanges
    one batch ahead; what comes after is traced as a few opaque steps. Batches come with rows for
    ids: `assignments` has given them before.
    """

    def __init__(
        self,
        tables: EmbeddingTables,
        network: Network | PairNetwork,
        balancer: Balancer,
        assignments: Assignments,
    ) -> None:
        super().__init__()
        self.assignments = assignments
        self.tables = tables
        self.network = network
        schema = network.schema
        self.num_tasks = len(schema.tasks)
        self.losses = TaskLosses(
            schema.tasks, network.losses, may_lose=schema.on_bad_file == "skip"
        )
        self.balancer = balancer
        self.boundary = None
        if isinstance(balancer, GradientBalancer):
            own = network.own_parameters()
            self.boundary = GradientBoundary(
                network,
                own,
                self.losses,
                balancer.combine,
                {name: schema.table(name) for name in schema.trained},
                by_row=isinstance(network, PairNetwork),
                frozen=set(schema.frozen),
            )
            balancer.prepare(schema.trained, self.boundary.shared, own)
        elif isinstance(balancer, SampleBalancer):
            assert isinstance(network, Network)
            balancer.prepare(network.scenario.output_dim)
            self.boundary = WeighedSamples(network, self.losses, balancer)
        elif isinstance(network, Network) and network.alignment is not None:
            self.boundary = AlignedNetwork(network, self.losses, balancer)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Losses to sum and differentiate; detached, plain losses and logits `[B, T]`.

        The plain losses are the tasks' `[T]`, and in training those of alignment after them.
        """
        if self.boundary is not None and torch.is_grad_enabled():
            total, losses, columns = self.boundary(batch, self.tables(batch))
            return total, (losses, columns[:, : self.num_tasks])
        columns = self.network(batch, self.tables(batch))
        losses = self.losses(columns, batch)
        return self.balancer(losses), (losses.detach(), columns[:, : self.num_tasks].detach())


class TaskLosses(nn.Module):
    """One loss for each task: the sum of the heads' terms, each a mean by its **global** count.

    DistributedDataParallel and TorchRec divide gradients by the number of ranks, so each rank's
    share is multiplied by it.

    Args:
        tasks: by name.
        terms: the heads' `losses`.
        may_lose: whether samples of a batch may turn out to be unreadable.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        terms: Callable[[Tensor, Tensor, Tensor], list[LossTerm]],
        may_lose: bool = False,
    ) -> None:
        super().__init__()
        self.num_tasks = len(tasks)
        self.terms = terms
        self.may_mask = may_lose or any(
            task.mask or task.given or task.on_invalid == "mask" or task.kind == "pairwise"
            for task in tasks.values()
        )

    def forward(self, columns: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """Columns `[B, C]`, and perhaps weights of the samples `[B, T]`, to losses `[T]`."""
        terms, samples, values = self._terms(columns, batch)
        values = values * batch.weight.unsqueeze(1)
        if weights is not None:
            values = values * weights[:, [term.task for term in terms]]
        sums = torch.where(samples, values, 0).sum(0)
        count = batch.num_samples
        if self.may_mask:  # then it differs by term, and no rank knows it alone
            count = all_sum(samples.sum(0)).clamp(min=1)
        means = sums * (dist.get_world_size() / count)
        by_task = [
            sum(mean for mean, term in zip(means, terms, strict=True) if term.task == t)
            for t in range(self.num_tasks)
        ]
        return torch.stack(by_task)  # pyright: ignore[reportArgumentType]  # none is without terms

    def by_sample(self, columns: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each sample and task the loss, or 0, and whether it has one: `[B, T]` each."""
        terms, samples, values = self._terms(columns, batch)
        of_task = F.one_hot(torch.tensor([term.task for term in terms]), self.num_tasks)
        of_task = of_task.to(values)
        return torch.where(samples, values, 0) @ of_task, samples.to(values) @ of_task > 0

    def _terms(self, columns: Tensor, batch: Batch) -> tuple[list[LossTerm], Tensor, Tensor]:
        """The heads' terms, N of them; their samples and their values, `[B, N]` each."""
        terms = self.terms(columns.float(), batch.labels, batch.mask)
        samples = torch.stack([term.samples for term in terms], dim=1)
        return terms, samples, torch.stack([term.value for term in terms], dim=1)


class WeighedSamples(nn.Module):
    """Runs a network and lets a balancing method weigh its losses sample by sample.

    Args:
        network: batch and outputs of the tables to representation and columns.
        losses: columns, batch and weights to this rank's shares of the losses.
        balancer: the method.
    """

    def __init__(self, network: Network, losses: TaskLosses, balancer: SampleBalancer) -> None:
        super().__init__()
        self._parts = (network, losses, balancer)  # not registered here a second time

    def forward(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate, of one element; detached, losses `[T]` and columns `[B, C]`."""
        network, losses, balancer = self._parts
        states, columns = network.represented(batch, outputs)
        with torch.no_grad():
            actions = predictions(columns, network.schema.tasks)
            found, present = losses.by_sample(columns, batch)
            plain = losses(columns, batch)
        weights, own = balancer.sample_weights(
            batch, states.detach().float(), actions, found, present
        )
        total = losses(columns, batch, weights).sum() + own
        return total.reshape(1), plain, columns.detach()


class AlignedNetwork(nn.Module):
    """Runs a network with its losses of alignment beside the tasks'.

    Args:
        network: that has some.
        losses: columns and batch to this rank's shares of the tasks' losses.
        balancer: of the tasks' losses.
    """

    def __init__(self, network: Network, losses: TaskLosses, balancer: Balancer) -> None:
        super().__init__()
        self._parts = (network, losses, balancer)  # not registered here a second time

    def forward(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate; detached, losses `[T + A]` and columns `[B, C]`."""
        network, losses, balancer = self._parts
        assert network.alignment is not None
        columns, shares = network.aligned(batch, outputs)
        found = losses(columns, batch)
        total = torch.cat([network.alignment.config.tasks * balancer(found), shares])
        return total, torch.cat([found, shares]).detach(), columns.detach()


def predictions(logits: Tensor, tasks: Mapping[str, Task]) -> Tensor:
    """Logits `[B, T]` to probabilities (binary tasks), values or scores, float32."""
    columns = [
        logits[:, t].float().sigmoid() if task.kind == "binary" else logits[:, t].float()
        for t, task in enumerate(tasks.values())
    ]
    return torch.stack(columns, dim=1)


def _name(config: Config) -> str:
    return config.name  # pyright: ignore[reportAttributeAccessIssue]  # every member's has one
