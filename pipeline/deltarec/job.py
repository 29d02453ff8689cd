# SPDX-License-Identifier: Apache-2.0
"""One job: the tree of all configuration."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deltarec.balancing import BALANCERS
from deltarec.balancing.adatask import AdaTask
from deltarec.balancing.balancer import GradientBalancer
from deltarec.balancing.equal import Equal
from deltarec.balancing.pmtrec import PMTRec
from deltarec.checkpoint import CheckpointConfig
from deltarec.config import Config, OneOf
from deltarec.data.files import Damage, ParquetFile, find
from deltarec.data.partitions import StreamConfig
from deltarec.data.prepare import DATASETS
from deltarec.data.prepare.dataset import Dataset, prepare_once
from deltarec.data.reader import ReaderConfig
from deltarec.data.schema import (
    FEATURES,
    Feature,
    IdListFeature,
    Scenario,
    Schema,
    Task,
    negative_features,
    node_features,
)
from deltarec.embeddings.policies import autoassigned
from deltarec.embeddings.tables import EmbeddingConfig
from deltarec.job_checks import check
from deltarec.metrics import METRICS, RANKING_METRICS
from deltarec.metrics.metric import Kind
from deltarec.models.cascade import joint_tasks
from deltarec.models.network import ModelConfig
from deltarec.optimizers import OptimizerConfig
from deltarec.warm_start import WarmStartConfig

Split = Literal["train", "valid", "test", "events"]
PREPARED = Path("data/prepared")


class DataConfig(Config):
    """Where the data are, how they are made, and the columns that are neither feature nor label."""

    source: str
    """Folder of the data, a local path or a URL (s3://, gs://, hdfs://). With `prepare`, of the raw
    data."""
    prepare: Annotated[Dataset, OneOf(DATASETS, key="dataset")] | None = None
    """Makes Parquet of raw data, at first use, under data/prepared/."""
    train: list[str] = Field(default=["train"], min_length=1)
    """Files, folders, partitions or globs under the data's folder."""
    valid: list[str] = []  # noqa: RUF012
    """Likewise, for early stopping and the evaluations during training; none if empty."""
    test: list[str] = []  # noqa: RUF012
    """Likewise, for the evaluation at the end; none if empty."""
    events: list[str] = []  # noqa: RUF012
    """Likewise, of pairwise tasks: what users are known to have done, for graphs and re-ranking;
    `train` if empty."""
    user: str | None = None
    """Column of the user, for metrics by user; nulls count as one user."""
    weight: str | None = None
    """Column of the sample's weight in the losses."""
    slices: dict[str, list[int]] = {}  # noqa: RUF012
    """Columns of whole numbers by which evaluations are split, beside the scenarios, and the lower
    bounds of their buckets: `{item_trained: [1, 2, 6, 21]}` gives `item_trained <1`, `1`, `2-5`,
    `6-20` and `21+`."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """What to do with a file that is not Parquet, is truncated, or has a row group that cannot be
    decoded: stop, or leave out what cannot be read, name the file, and count it as `skipped` in
    result.json and metrics.jsonl. A missing column or a wrong type always stops."""
    reader: ReaderConfig = ReaderConfig()

    def root(self) -> str:
        """Folder of the Parquet files; prepares them where that has not been done."""
        return self.source if self.prepare is None else str(self._prepared)

    @cached_property
    def _prepared(self) -> Path:
        """Looked up once: all splits of a job are of the raw files as they were then."""
        return prepare_once(self.prepare, Path(self.source), PREPARED)  # pyright: ignore[reportArgumentType]

    def files(
        self, split: Split, damaged: Damage | None = None, partition: str | None = None
    ) -> list[ParquetFile]:
        """The files of a split; those that `on_bad_file` leaves out are noted in `damaged`.

        Of a partition, instead, where one is given.
        """
        noted = damaged if damaged is not None else {}
        skip = self.on_bad_file == "skip"
        named = self.train if split == "events" and not self.events else getattr(self, split)
        patterns = [partition] if partition else named
        damaged = noted if skip else None
        return find(self.root(), patterns, damaged, may_be_empty=partition is not None)

    @model_validator(mode="after")
    def _ascending_slices(self) -> "DataConfig":
        for column, bounds in self.slices.items():
            if not bounds or sorted(set(bounds)) != bounds:
                raise ValueError(f"slices.{column}: bounds must ascend, got {bounds}")
        return self


class EarlyStopping(Config):
    """Stops when a metric on the validation data has not improved for a while."""

    task: str | list[str] | None = None
    """The first one if not given; of several, the mean of the metric. With `given`, also a joint
    one such as click*buy."""
    metric: str = "auc"
    patience: int = Field(default=2, gt=0)
    """Evaluations without improvement."""


class ProfileConfig(Config):
    """A window of steps that PyTorch's profiler traces into the run folder."""

    start: int = Field(default=10, ge=0)
    steps: int = Field(default=5, gt=0)


class TrainConfig(Config):
    """The training loop."""

    batch_size: int = Field(gt=0)
    """Samples of a global batch, over all processes."""
    eval_batch_size: int | None = Field(default=None, gt=0)
    """Of an evaluation; `batch_size` if not given."""
    epochs: int = Field(default=1, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after so many batches, if the epochs are not over before."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of weights, shuffling and dropout."""
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    """What dense layers compute in; parameters stay fp32."""
    pipeline: Literal["sparse_dist", "plain"] = "sparse_dist"
    """TorchRec's pipeline, which exchanges the next batch's ids during this one; or one step after
    the other, for debugging."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Steps between evaluations on the validation data; at the end of each epoch if not given."""
    early_stopping: EarlyStopping | None = None
    """With it, the test data are evaluated with the best checkpoint instead of the last."""
    log_every: int = Field(default=100, gt=0)
    """Steps between two lines of losses and speed."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    warm_start: WarmStartConfig | None = None
    hang_seconds: float = Field(default=600, gt=0)
    """A job ends itself, and says where it waits, if it goes so long without a step, a batch of an
    evaluation, or a piece of a checkpoint."""
    deterministic: bool = False
    """Only deterministic kernels; an operation that has none stops the job."""
    profile: ProfileConfig | None = None


class Job(Config):
    """One job: data, features, tasks, scenario, embedding, model, balance, train."""

    data: DataConfig
    """Where the data are, and how they are read."""
    stream: StreamConfig | None = None
    """With it, `data.train` is a stream of partitions by time; otherwise it is one data set."""
    features: dict[str, Annotated[Feature, OneOf(FEATURES, key="kind")]] = Field(min_length=1)
    """The inputs, by name; `kind` is id, ids, sequence or dense."""
    tasks: dict[str, Task] = Field(min_length=1)
    """The labels, by name; the first one is the main task."""
    scenario: Scenario | None = None
    """The column that tells scenarios apart."""
    embedding: EmbeddingConfig
    """The embedding tables."""
    model: ModelConfig
    """A member for each role."""
    balance: Annotated[Config, OneOf(BALANCERS)] = Equal.Config(name="equal")
    """How the tasks' losses are balanced."""
    train: TrainConfig
    """The training loop."""

    @property
    def data_schema(self) -> Schema:
        """What the reader needs of the configuration."""
        return Schema(
            features={
                **self.features,
                **negative_features(self.tasks, self.features),
                **node_features(self.node_tables()),
            },
            tasks=self.tasks,
            scenario=self.scenario,
            table_rows={name: table.rows for name, table in self.embedding.tables.items()},
            user=self.data.user,
            weight=self.data.weight,
            on_bad_file=self.data.on_bad_file,
            slices=self.data.slices,
            row_tables=self._row_tables(),
            raw_tables={n for n, t in self.embedding.resolved().items() if t.assignment},
            frozen_tables={name for name, table in self.embedding.tables.items() if table.frozen},
        )

    def node_tables(self) -> list[str]:
        """The tables of a graph's users and items."""
        graph = self.model.graph
        return [self.table_of(name) for name in (graph.user, graph.behaviours[0])] if graph else []

    def _row_tables(self) -> set[str]:
        """Those that LSQ quantises, and those of lists whose single rows others look at."""
        tables = self.embedding.resolved()
        found = {name for name, table in tables.items() if table.fake_quantised}
        lists = [name for name, f in self.features.items() if isinstance(f, IdListFeature)]
        of_lists = {self.table_of(name) for name in lists}
        return found | (of_lists if self.balanced_by_row else of_lists & self.agent_tables())

    def agent_tables(self) -> set[str]:
        """Those whose ids the identity agent looks after."""
        return set(autoassigned(self.embedding.tables))

    @property
    def balanced_by_row(self) -> bool:
        """Whether the balancing method sees the tasks' gradients of the tables' rows."""
        method = BALANCERS[self.balance.name]  # pyright: ignore
        by_gradients = self.model.pair is not None and issubclass(method, GradientBalancer)
        return len(self.tasks) > 1 and (method in (PMTRec, AdaTask) or by_gradients)

    @property
    def measured(self) -> dict[str, Kind]:
        """What evaluation reports of, and its kind: the tasks, and the joint ones of chains."""
        kinds: dict[str, Kind] = {name: task.kind for name, task in self.tasks.items()}
        kinds.update(dict.fromkeys(joint_tasks(self.tasks), "binary"))
        return kinds

    @property
    def early_stopping_tasks(self) -> list[str]:
        """Whose mean decides when to stop; none without early stopping."""
        if self.train.early_stopping is None:
            return []
        told = self.train.early_stopping.task or next(iter(self.tasks))
        return [told] if isinstance(told, str) else told

    @property
    def losses(self) -> list[str]:
        """The names of what is trained on: the tasks, then the losses of alignment."""
        align = self.model.align
        return [*self.tasks, *(f"align/{name}" for name in (align.names if align else []))]

    def metrics(self, measured: str) -> list[str]:
        """The names of all metrics of one of `measured` that the data admit."""
        kind = self.measured[measured]
        if kind == "pairwise":
            return self.tasks[measured].ranking.metrics(RANKING_METRICS)
        has_user = self.data.user is not None
        return [
            name
            for name, metric in METRICS.items()
            if metric.kind == kind and (has_user or metric.partition != "user")
        ]

    def table_of(self, feature: str) -> str:
        """The table that a feature looks up, whether it is declared or not."""
        return getattr(self.features.get(feature), "table", None) or feature

    @model_validator(mode="after")
    def _consistent(self) -> "Job":
        check(self)
        return self
