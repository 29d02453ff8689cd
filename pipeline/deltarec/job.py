# SPDX-License-Identifier: Apache-2.0
"""One job: the tree of all configuration, and the checks that need more than one part of it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from deltarec.balancing import BALANCERS
from deltarec.balancing.adatask import AdaTask
from deltarec.balancing.balancer import GradientBalancer, SampleBalancer
from deltarec.balancing.equal import Equal
from deltarec.balancing.pmtrec import PMTRec
from deltarec.balancing.rmtl import RMTL
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
    IdFeature,
    IdListFeature,
    Scenario,
    Schema,
    SequenceFeature,
    Task,
    negative_features,
    node_features,
)
from deltarec.embeddings.policies import AutoAssign
from deltarec.embeddings.tables import EmbeddingConfig
from deltarec.metrics import METRICS, RANKING_METRICS
from deltarec.metrics.metric import Kind
from deltarec.models import TEXT_ADAPTORS
from deltarec.models.cascade import joint_tasks
from deltarec.models.ranking import ModelConfig
from deltarec.models.roles import GraphConfig
from deltarec.optimizers import SGD, Constant, OptimizerConfig
from deltarec.text.prompt import features_of
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
        if self.prepare is None:
            return self.source
        return str(prepare_once(self.prepare, Path(self.source), PREPARED))

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

    task: str | None = None
    """The first one if not given. With `given`, also a joint one such as click*buy."""
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
    seed: int = Field(default=0, ge=0)
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
                **node_features(self._node_tables()),
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

    def _node_tables(self) -> list[str]:
        """The tables of a graph's users and items."""
        graph = self.model.graph
        return [self._table(name) for name in (graph.user, graph.behaviours[0])] if graph else []

    def _row_tables(self) -> set[str]:
        """Those that LSQ quantises, and those of lists whose single rows others look at."""
        tables = self.embedding.resolved()
        found = {name for name, table in tables.items() if table.fake_quantised}
        lists = {n: f for n, f in self.features.items() if isinstance(f, IdListFeature)}
        of_lists = {feature.table or name for name, feature in lists.items()}
        return found | (of_lists if self._balanced_by_row else of_lists & self._agent_tables())

    def _agent_tables(self) -> set[str]:
        """Those whose ids the identity agent looks after."""
        tables = self.embedding.tables.items()
        return {name for name, table in tables if isinstance(table.assignment, AutoAssign)}

    @property
    def _balanced_by_row(self) -> bool:
        """Whether the balancing method sees the tasks' gradients of the tables' rows."""
        method = BALANCERS[self.balance.name]  # pyright: ignore
        by_gradients = self.model.pair is not None and issubclass(method, GradientBalancer)
        return len(self.tasks) > 1 and (method is PMTRec or by_gradients)

    @property
    def measured(self) -> dict[str, Kind]:
        """What evaluation reports of, and its kind: the tasks, and the joint ones of chains."""
        kinds: dict[str, Kind] = {name: task.kind for name, task in self.tasks.items()}
        kinds.update(dict.fromkeys(joint_tasks(self.tasks), "binary"))
        return kinds

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

    @model_validator(mode="after")
    def _consistent(self) -> "Job":
        self._check_pairs()  # before all else: what the reader draws depends on them
        schema = self.data_schema
        self._check_names(schema)
        for name, feature in schema.sparse.items():
            if schema.table(name) not in self.embedding.tables:
                raise ValueError(
                    f"features.{name}: there is no table '{schema.table(name)}'; "
                    f"declare embedding.tables.{schema.table(name)} or name another by 'table'"
                )
            rows = schema.table_rows[schema.table(name)]
            is_raw = schema.table(name) in schema.raw_tables
            if not is_raw and not 0 <= feature.default < rows:
                raise ValueError(f"features.{name}.default: {feature.default} is not below {rows}")
        unused = self.embedding.tables.keys() - {schema.table(name) for name in schema.sparse}
        if unused:
            raise ValueError(f"embedding.tables.{min(unused)}: no feature uses this table")
        self._check_assignment(schema)
        self._check_lists(schema)
        self._check_sequences(schema)
        self._check_text(schema)
        self._check_language_model(schema)
        self._check_tasks()
        self._check_early_stopping()
        self._check_scenario()
        self._check_balance()
        self._check_stream()
        return self

    def _check_names(self, schema: Schema) -> None:
        """Tables and encoders are modules of these names, which PyTorch does not always admit."""
        modules = [(f"embedding.tables.{name}", name) for name in self.embedding.tables]
        modules += [(f"features.{name}", name) for name in schema.sequences]
        for key, name in modules:
            if not name or "." in name or hasattr(nn.ModuleDict, name) or name == "training":
                raise ValueError(
                    f"{key}: PyTorch admits no module of the name '{name}'; choose another, and "
                    "let 'table' or 'column' of the feature say which it means"
                )

    def _check_assignment(self, schema: Schema) -> None:
        wants_rows = self.model.pair is not None or self.model.graph is not None
        if wants_rows and schema.raw_tables:
            raise ValueError(
                f"embedding.tables.{min(schema.raw_tables)}.assignment: the ids of pairwise tasks "
                "and graphs are rows, among which negatives are drawn; leave it out"
            )
        tables = self._agent_tables()
        if not tables:
            return
        where, agent = f"embedding.tables.{min(tables)}.assignment", self.embedding.agent
        if self.stream is None:
            raise ValueError(f"{where}: autoassign learns after each partition; set 'stream'")
        alone = tables - {schema.table(n) for n, f in self.features.items() if f.kind == "id"}  # pyright: ignore
        if alone:
            raise ValueError(
                f"embedding.tables.{min(alone)}.assignment: autoassign learns by a feature of kind "
                "id, and this table has none; choose another policy"
            )
        if not any(task.kind == "binary" for task in self.tasks.values()):
            raise ValueError(f"{where}: autoassign learns by the loss of a binary task; add one")
        if agent.gamma and self.data.user is None:
            raise ValueError(
                f"embedding.agent.gamma: {agent.gamma} counts the user's next sample; set "
                "data.user, or gamma to 0"
            )
        if not agent.critic and not agent.bce:
            raise ValueError(
                "embedding.agent: learns of nothing; set critic to true, or bce above 0"
            )
        by_gradients = issubclass(BALANCERS[self.balance.name], GradientBalancer)  # pyright: ignore
        if agent.bce and by_gradients and len(self.tasks) > 1:
            raise ValueError(
                f"embedding.agent.bce: {agent.bce} takes the losses' gradient, which balance "
                f"{self.balance.name} never sums; set it to 0, or balance by losses"  # pyright: ignore
            )

    def _check_lists(self, schema: Schema) -> None:
        """TorchRec pools all features of a table in one way, with weights or without."""
        by_table: dict[str, dict[str, tuple[str, bool]]] = {}
        for name, feature in schema.sparse.items():
            if not isinstance(feature, IdListFeature):
                continue
            table = schema.table(name)
            if feature.weights and feature.pooling != "sum":
                raise ValueError(f"features.{name}.pooling: with weights, only sum is possible")
            if feature.weights and table in schema.unpooled_tables:
                sequences = {schema.table(sequence) for sequence in schema.sequences}
                user = "a sequence" if table in sequences else "quantisation_aware training"
                if table in self._agent_tables():
                    user = "autoassign"
                if self._balanced_by_row:
                    user = f"balance {self.balance.name}"  # pyright: ignore
                raise ValueError(
                    f"features.{name}.weights: {user} uses the single rows of table '{table}', and "
                    "such tables are not pooled with weights; give the feature a table of its own"
                )
            if table not in schema.unpooled_tables:
                way = (feature.pooling, feature.weights is not None)
                by_table.setdefault(table, {})[name] = way
        for table, ways in by_table.items():
            users = [name for name in schema.sparse if schema.table(name) == table]
            weighted = any(has_weights for _, has_weights in ways.values())
            if len(set(ways.values())) > 1 or (weighted and len(users) > len(ways)):
                raise ValueError(
                    f"embedding.tables.{table}: its features {users} are pooled in different ways; "
                    "TorchRec pools a table in one way, so give them tables of their own"
                )

    def _check_sequences(self, schema: Schema) -> None:
        for name, sequence in schema.sequences.items():
            if sequence.aligned_with is not None:
                self._check_aligned(schema, name, sequence, sequence.aligned_with)
            if sequence.target is None:
                continue
            target = schema.sparse.get(sequence.target)
            if target is None or target.kind != "id":  # pyright: ignore
                raise ValueError(f"features.{name}.target: no id feature '{sequence.target}'")
            if schema.table(sequence.target) != schema.table(name):
                raise ValueError(
                    f"features.{name}.target: '{sequence.target}' must use the same table, "
                    f"'{schema.table(name)}'"
                )

    def _check_text(self, schema: Schema) -> None:
        nodes = [table for table in self._node_tables() if table in schema.frozen_tables]
        if nodes:
            raise ValueError(
                f"embedding.tables.{nodes[0]}.frozen: a graph's nodes are trained; leave it out, "
                "or give users and items tables of their own"
            )
        if self.model.text is None:
            return
        kind = TEXT_ADAPTORS[self.model.text.name]  # pyright: ignore
        adapted = [name for name in schema.frozen if name not in self.model.texts]
        if not adapted:
            raise ValueError("model.text: is for frozen tables; give one embedding.tables.…frozen")
        if not kind.reads_codes:
            return
        self._check_exact({schema.table(name) for name in adapted}, "codes that model.text reads")
        for name in adapted:
            if isinstance(schema.sparse[name], IdListFeature):
                raise ValueError(
                    f"features.{name}.kind: a list of codes cannot be pooled; make it a sequence"
                )

    def _check_exact(self, names: set[str], what: str) -> None:
        """Tables of whole numbers must hold them as they are."""
        for name in sorted(names):
            table = self.embedding.tables[name]
            precision = table.precision or self.embedding.precision
            if precision != "fp32":
                raise ValueError(
                    f"embedding.tables.{name}.precision: {precision} rounds the {what}; take fp32"
                )

    def _check_language_model(self, schema: Schema) -> None:
        model = self.model
        method = BALANCERS[self.balance.name]  # pyright: ignore
        by_gradient = issubclass(method, (GradientBalancer, SampleBalancer))
        if model.align is not None and len(self.tasks) > 1 and by_gradient:
            raise ValueError(
                f"balance.name: '{self.balance.name}' weighs tasks by gradients or samples, which "  # pyright: ignore
                "losses of alignment do not have; choose another method"
            )
        if model.score is not None and model.score.task not in (None, *self.tasks):
            raise ValueError(f"model.score.task: no task '{model.score.task}'")
        soft = [name for prompt in model.prompts for name in features_of(prompt, "soft")]
        for name in (*model.texts, *soft):
            if name not in schema.sparse:
                raise ValueError(f"model: there is no feature '{name}' of ids, which a prompt has")
        for name in soft:
            if name in schema.sequences or name in model.texts:
                raise ValueError(
                    f"features.{name}: a soft token is one vector; take an id, or a list of ids"
                )
        vectors = model.align.vectors if model.align else []
        for name in model.texts:
            kinds = (IdFeature,) if name in vectors else (IdFeature, SequenceFeature)
            if schema.table(name) not in schema.frozen_tables or not isinstance(
                schema.sparse[name], kinds
            ):
                raise ValueError(
                    f"features.{name}: a text is an id{'' if name in vectors else ' or a sequence'}"
                    f" of a frozen table; '{schema.table(name)}' is none, or the kind is another"
                )
            targets = [n for n, f in schema.sequences.items() if f.target == name]
            if targets and targets[0] not in model.texts:
                raise ValueError(
                    f"features.{targets[0]}.target: '{name}' is a text of model.align or score, "
                    "and no field; choose another"
                )
        tokens = {schema.table(name) for name in model.texts if name not in vectors}
        self._check_exact(tokens, "tokens that a prompt is made of")

    def _check_aligned(
        self, schema: Schema, name: str, sequence: SequenceFeature, first: str
    ) -> None:
        key = f"features.{name}.aligned_with"
        if first not in schema.sequence_groups:
            known = ", ".join(schema.sequence_groups) or "(there is none)"
            raise ValueError(f"{key}: no sequence '{first}' to align with: expected {known}")
        if schema.table(first) != schema.table(name):
            raise ValueError(
                f"{key}: '{first}' must use the same table, '{schema.table(name)}'; "
                f"set features.{name}.table"
            )
        if sequence.target is not None:
            raise ValueError(
                f"features.{name}.target: leave it out, an aligned sequence has the target of "
                f"'{first}'"
            )

    def _check_tasks(self) -> None:
        seen: dict[str, Task] = {}
        for name, task in self.tasks.items():
            if "*" in name:
                raise ValueError(
                    f"tasks.{name}: '*' stands in the names of joint tasks (click*buy); choose "
                    "another name, and let 'label' say the column"
                )
            if task.kind != "binary" and task.positive_weight != 1.0:
                raise ValueError(f"tasks.{name}.positive_weight: only a binary task has positives")
            if task.given is not None:
                parent = seen.get(task.given)
                if parent is None or parent.kind != "binary":
                    raise ValueError(
                        f"tasks.{name}.given: '{task.given}' is not a binary task declared before"
                    )
            seen[name] = task

    def _check_pairs(self) -> None:
        """Pairwise tasks have two sides, and a model of their own."""
        for name, task in self.tasks.items():
            pairwise = {"query", "item", "negatives", "num_items", "ranking"}
            foreign = {"label", "given", "on_invalid"} if task.kind == "pairwise" else pairwise
            plain = Task()
            found = [key for key in sorted(foreign) if getattr(task, key) != getattr(plain, key)]
            if found:
                raise ValueError(f"tasks.{name}.{found[0]}: is not for a {task.kind} task")
            if task.kind == "pairwise":
                self._check_sides(name, task)
        kinds = {task.kind == "pairwise" for task in self.tasks.values()}
        if kinds == {True, False}:
            raise ValueError("tasks: either all are pairwise or none; make two jobs of them")
        if kinds != {self.model.pair is not None}:
            wanted = "model.pair" if kinds == {True} else "model.trunk and model.heads"
            raise ValueError(f"model: tasks of these kinds are for {wanted}")
        if self.model.pair is None:
            return
        graph = self.model.graph
        used = {
            f for task in self.tasks.values() for f in (*task.query, *task.item, *task.ranking.own)
        } | ({graph.user, *graph.behaviours} if graph else set())
        unused = [name for name in self.features if name not in used]
        if unused:
            raise ValueError(f"features.{unused[0]}: no side of a pairwise task has this feature")
        dropped = [name for name, f in self.features.items() if getattr(f, "dropout", 0)]
        if dropped:
            raise ValueError(f"features.{dropped[0]}.dropout: is not for pairwise tasks")
        if self.scenario is not None:
            raise ValueError("scenario: pairwise tasks know none; give the query its feature")
        if graph:
            self._check_graph(graph)

    def _check_sides(self, name: str, task: Task) -> None:
        for key, features in (("query", task.query), ("item", task.item)):
            unknown = [feature for feature in features if feature not in self.features]
            if unknown:
                raise ValueError(f"tasks.{name}.{key}: there is no feature '{unknown[0]}'")
            kinds = [self.features[feature].kind for feature in features]  # pyright: ignore
            if kinds[:1] != ["id"]:
                raise ValueError(f"tasks.{name}.{key}: its first feature must be an id")
            if "sequence" in kinds:
                raise ValueError(f"tasks.{name}.{key}: sequences are not for pairwise tasks")
        if len(task.item) > 1:
            raise ValueError(
                f"tasks.{name}.item: got {task.item}; items drawn as negatives are known by their "
                "id alone, so name that one"
            )
        for feature in task.ranking.own:
            if feature not in self.features or self._table(feature) != self._table(task.item[0]):
                raise ValueError(
                    f"tasks.{name}.ranking.own: '{feature}' is no feature of the items' table "
                    f"'{self._table(task.item[0])}'"
                )
        rows = self._rows(task.item[0])
        if not 1 < (task.num_items or rows) <= rows:
            raise ValueError(
                f"tasks.{name}.num_items: the table of '{task.item[0]}' has {rows} rows, of which "
                "at least two must be items"
            )

    def _check_graph(self, graph: GraphConfig) -> None:
        """Nodes are the rows of two tables, which nothing else looks up."""
        for feature in (graph.user, *graph.behaviours):
            if not isinstance(self.features.get(feature), IdFeature):
                raise ValueError(f"model.graph: there is no id feature '{feature}'")
        tables = {self._table(feature) for feature in graph.behaviours}
        user = self._table(graph.user)
        if len(tables) > 1 or user in tables:
            raise ValueError(
                f"model.graph.behaviours: their tables are {sorted(tables)}, that of "
                f"'{graph.user}' is '{user}'; all behaviours need one table, which is another"
            )
        known = self.embedding.resolved()
        used = {name: known[name] for name in (user, *tables) if name in known}
        if len({table.dim for table in used.values()}) > 1:
            raise ValueError(f"model.graph: tables {[*used]} are of one graph; give them one dim")
        for name, feature in self.features.items():
            table = getattr(feature, "table", None) or name
            if table in used and not isinstance(feature, IdFeature):
                raise ValueError(f"features.{name}: only id features are for nodes of a graph")
        for name, table in used.items():
            if table.fake_quantised:
                raise ValueError(
                    f"embedding.tables.{name}.quantisation_aware: is not for nodes of a graph"
                )

    def _table(self, feature: str) -> str:
        return getattr(self.features.get(feature), "table", None) or feature

    def _rows(self, feature: str) -> int:
        """Of the feature's table, 0 if there is none."""
        table = self.embedding.tables.get(self._table(feature))
        return table.rows if table else 0

    def _check_early_stopping(self) -> None:
        stopping = self.train.early_stopping
        if stopping is None:
            return
        if not self.data.valid:
            raise ValueError("train.early_stopping needs validation data: set data.valid")
        if stopping.task is not None and stopping.task not in self.measured:
            raise ValueError(f"train.early_stopping.task: no task '{stopping.task}'")
        task = stopping.task or next(iter(self.tasks))
        kind = self.measured[task]
        known = [name for name, metric in METRICS.items() if metric.kind == kind]
        if kind == "pairwise":
            known = self.metrics(task)
        if stopping.metric not in known:
            raise ValueError(
                f"train.early_stopping.metric: '{stopping.metric}' is not a metric of the {kind} "
                f"task '{task}': expected one of {', '.join(known)}"
            )
        if stopping.metric not in self.metrics(task):
            raise ValueError(
                f"train.early_stopping.metric: '{stopping.metric}' is by user: set data.user"
            )

    def _check_balance(self) -> None:
        if isinstance(self.balance, RMTL.Config) and len(self.tasks) > 1:
            self._check_episodes(self.balance)
        if not isinstance(self.balance, AdaTask.Config) or len(self.tasks) == 1:
            return
        optimizer = self.train.optimizer
        if not isinstance(optimizer.dense, SGD) or optimizer.dense.momentum:
            raise ValueError(
                f"train.optimizer.dense.name: got '{optimizer.dense.name}'; balance adatask is "  # pyright: ignore
                "itself the dense optimiser, and only 'sgd' without momentum hands its update on"
            )
        if optimizer.accumulate > 1 or optimizer.clip_norm is not None:
            raise ValueError(
                "train.optimizer: balance adatask makes Adam's update at every batch; leave "
                "'accumulate' and 'clip_norm' out"
            )
        for name, table in self.embedding.tables.items():
            if table.sharding == "data_parallel":
                raise ValueError(
                    f"embedding.tables.{name}.sharding: 'data_parallel' leaves the table to the "
                    "dense optimiser, which balance adatask makes plain sgd; choose another"
                )

    def _check_episodes(self, balance: RMTL.Config) -> None:
        if self.model.pair is not None:
            raise ValueError(
                "balance.name: 'rmtl' looks at the representation of a sample, which pairwise "
                "tasks do not have; choose another method"
            )
        if balance.gamma and self.data.user is None:
            raise ValueError(
                f"balance.gamma: {balance.gamma} counts the user's next sample; set data.user, or "
                "gamma to 0"
            )
        if balance.gamma and self.data.reader.shuffle:
            raise ValueError(
                f"balance.gamma: {balance.gamma} counts the user's next sample; set "
                "data.reader.shuffle to false, or gamma to 0"
            )

    def _check_stream(self) -> None:
        pairwise = self.model.pair is not None
        if pairwise and self.data.slices:
            raise ValueError("data.slices: pairwise tasks are not evaluated by slice")
        if self.stream is None:
            return
        if pairwise:
            raise ValueError("stream: pairwise tasks are evaluated on whole data sets only")
        if self.data.valid:
            raise ValueError(
                "data.valid: leave it out, a stream is evaluated on each partition before it is "
                "trained on"
            )
        if self.train.epochs != 1:
            raise ValueError(f"train.epochs: got {self.train.epochs}; a stream is trained on once")
        if self.train.max_steps is not None:
            return
        schedule = self.train.optimizer.schedule
        endings = {"train.optimizer.schedule": not isinstance(schedule, Constant)}
        endings["balance"] = isinstance(self.balance, PMTRec.Config)
        for key, needs_end in endings.items():
            if needs_end:
                raise ValueError(
                    f"{key}: goes by the number of all steps, which a stream does not know; set "
                    "train.max_steps, or choose another"
                )

    def _check_scenario(self) -> None:
        if self.scenario is None:
            return
        values: list[int | str] = list(self.scenario.values)
        if len(set(values)) < len(values):
            raise ValueError(f"scenario.values: one is there twice among {values}")
        if self.scenario.default is not None and self.scenario.default not in values:
            raise ValueError(
                f"scenario.default: {self.scenario.default!r} is not among scenario.values"
            )
