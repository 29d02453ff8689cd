# SPDX-License-Identifier: Apache-2.0
"""Puts together what a job is made of: its sharded model, its graphs, its readers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from deltarec.balancing import balancer_of
from deltarec.data.batch import Batch
from deltarec.data.files import Damage, ParquetFile
from deltarec.data.negatives import Negatives
from deltarec.data.pairs import count_items, read_pairs
from deltarec.data.reader import Reader
from deltarec.data.subgraphs import SubgraphSampler
from deltarec.distributed import all_sum, is_main, rank, world_size
from deltarec.embeddings import sharding
from deltarec.embeddings.agent import Agent
from deltarec.embeddings.assignment import Assignments
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.frozen import FrozenConfig, check_files, largest_value
from deltarec.embeddings.planning import Hardware, describe, make_plan
from deltarec.embeddings.policies import autoassigned
from deltarec.job import Job, Split
from deltarec.layers.graph import BehaviourGraphs, bipartite
from deltarec.models.network import network_of
from deltarec.models.pairs import PairNetwork
from deltarec.models.ranking import RankingModel
from deltarec.models.roles import GraphConfig
from deltarec.models.semantic_ids import SemanticIds
from deltarec.skipped import Skipped
from deltarec.text.language_model import LanguageModel
from deltarec.text.made_tables import made_with
from deltarec.text.tokenise import vocabulary_digest


class Built(NamedTuple):
    """A job's sharded model with its initial weights, and what it was made from."""

    model: DistributedModelParallel
    plan: str
    """The sharding plan as text."""
    events: Skipped | None
    """The events that a graph was made of, without what is damaged."""


def build_model(job: Job, device: torch.device) -> Built:
    """The job's sharded model; a collective."""
    schema, specs = job.data_schema, job.embedding.resolved()
    torch.manual_seed(job.train.seed)  # before the dense part: every rank draws the same
    tables = EmbeddingTables(schema, specs)
    bf16 = job.train.precision == "bf16"
    network = network_of(job.model, schema, specs, job.train.seed, bf16)
    balancer = balancer_of(job.balance, list(job.tasks), job.train.seed)
    agent = None
    if autoassigned(specs):
        agent = Agent(job.embedding.agent, schema, specs, job.train.seed)
    model = RankingModel(tables, network, balancer, Assignments(schema, specs, agent))
    share = -(-job.train.batch_size // world_size())
    plan = make_plan(tables, specs, Hardware.here(device), share).plan
    assert plan is not None
    description = describe(plan, specs, world_size())
    sharded = sharding.shard(model, plan, specs, device, job.train.seed, job.train.batch_size)
    events = None
    if isinstance(network, PairNetwork) and job.model.graph is not None:
        network.graphs, events = _read_graphs(job, job.model.graph, device)
    return Built(sharded, description, events)


def _read_graphs(
    job: Job, graph: GraphConfig, device: torch.device
) -> tuple[BehaviourGraphs, Skipped]:
    """The behaviours' graphs, whole on every rank, of the rows of `data.events`."""
    schema, rows = job.data_schema, job.train.eval_batch_size or job.train.batch_size
    damage: Damage = {}
    files = job.data.files("events", damage)
    reader = Reader(files, schema, job.data.reader, rows, seed=None, damage=damage)
    _require_same_files(reader)
    skipped = Skipped(reader, lambda text: print(text, flush=True) if is_main() else None)

    def after_batch(batch: Batch) -> None:  # every rank reads all; one of them counts
        skipped.after_batch(batch.lost if is_main() else Counter())

    features = [(graph.user, behaviour) for behaviour in graph.behaviours]
    edges = [
        bipartite(users.numpy(), items.numpy(), schema.node_sizes)  # pyright: ignore[reportArgumentType]
        for users, items in read_pairs(reader, features, after_batch).values()
    ]
    return BehaviourGraphs(edges, graph.normalise, device), skipped


def subgraph_sampler(job: Job, network: torch.nn.Module) -> SubgraphSampler | None:
    """What draws each batch's sub-graph, if the job trains on such."""
    graph = job.model.graph
    if not isinstance(network, PairNetwork) or graph is None or graph.subgraph is None:
        return None
    assert network.graphs is not None
    edges = network.graphs.edges
    return SubgraphSampler(graph.subgraph, job.data_schema, edges, job.train.seed)


def open_reader(
    job: Job,
    split: Split,
    device: torch.device,
    training: bool | None = None,
    partition: str | None = None,
) -> Reader:
    """A reader of a split for this rank; a collective.

    Args:
        job: the whole configuration.
        split: whose files to read.
        device: where batches go to.
        training: whether rows come in the order of training, with negatives drawn anew; by default
            those of `train` do.
        partition: of a stream.

    Raises:
        ValueError: the ranks find different files.
    """
    train, data = job.train, job.data
    training = split == "train" if training is None else training
    damage: Damage = {}
    files = data.files(split, damage, partition)
    reader = Reader(
        files,
        job.data_schema,
        data.reader,
        train.batch_size if training else train.eval_batch_size or train.batch_size,
        seed=train.seed if training and data.reader.shuffle else None,
        rank=rank(),
        num_ranks=world_size(),
        pin_memory=device.type == "cuda",
        damage=damage,
        negatives=_negatives(job, files) if training else None,
    )
    _require_same_files(reader)
    return reader


def _require_same_files(reader: Reader) -> None:
    identity: list[Any] = [reader.identity]
    dist.broadcast_object_list(identity)
    reader.require(identity[0], "rank 0", f"rank {rank()} must find the same files")


def _negatives(job: Job, files: Sequence[ParquetFile]) -> Negatives:
    """What draws the negatives of the job, which is trained on these files; a collective."""
    schema, rows = job.data_schema, job.train.eval_batch_size or job.train.batch_size
    names = [name for name, task in job.tasks.items() if task.negative_power]
    counts: dict[str, np.ndarray] = {}
    if names:
        reader = Reader(files, schema, job.data.reader, rows, None, rank(), world_size())
        for name, share in count_items(reader, names).items():
            counts[name] = all_sum(torch.from_numpy(share)).numpy()
    return Negatives(schema, job.train.seed, counts)


def check(job: Job) -> None:
    """Find what is wrong with a job before any process group starts.

    Raises:
        ValueError: the model's parts do not fit together, or the files do not fit the schema.
    """
    with torch.device("meta"):
        network = network_of(job.model, job.data_schema, job.embedding.resolved(), seed=0)
        balancer_of(job.balance, list(job.tasks), seed=0)
    for name, table in job.embedding.resolved().items():
        if table.frozen is not None:
            check_files(name, table.frozen, table.dim)
            if isinstance(job.model.text, SemanticIds.Config):
                _check_codes(name, table.frozen, job.model.text.size)
    _check_tokens(job, network)
    for split in ("train", "valid", "test", "events"):
        if getattr(job.data, split) and not (job.stream and split == "train"):
            for file in job.data.files(split):
                job.data_schema.check(file.schema, file.path)


def _check_codes(name: str, frozen: FrozenConfig, size: int) -> None:
    largest = largest_value(frozen)
    if largest is not None and largest > size:
        raise ValueError(
            f"model.text.size: {size}, but codes of embedding.tables.{name} go up to {largest}; "
            "take codes.size of text encode"
        )


def _check_tokens(job: Job, network: nn.Module) -> None:
    """Each language model must be given its own tokens."""
    schema = job.data_schema
    vectors = job.model.align.vectors if job.model.align else []
    of_prompts = {schema.table(name) for name in job.model.texts if name not in vectors}
    of_fields = {schema.table(name) for name in schema.frozen if name not in job.model.texts}
    for name, module in network.named_modules():
        if not isinstance(module, LanguageModel):
            continue
        wanted = vocabulary_digest(module.tokenizer)
        for table in sorted(of_prompts if name == "language_model" else of_fields):
            frozen = job.embedding.tables[table].frozen
            for file in frozen.files() if frozen else []:
                if made_with(file.schema).get("tokenizer") != wanted:
                    raise ValueError(
                        f"{file.path}: embedding.tables.{table} is not of tokens of "
                        f"{module.config.model}; make it by text tokenise with that tokenizer"
                    )
