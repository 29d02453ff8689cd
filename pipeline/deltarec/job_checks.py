# SPDX-License-Identifier: Apache-2.0
"""The checks of a job that need more than one part of its configuration."""

from typing import TYPE_CHECKING

from torch import nn

from deltarec.balancing import BALANCERS
from deltarec.balancing.adatask import AdaTask
from deltarec.balancing.balancer import GradientBalancer, SampleBalancer
from deltarec.balancing.periods import PeriodConfig
from deltarec.balancing.pmtrec import PMTRec
from deltarec.balancing.rmtl import RMTL
from deltarec.data.schema import IdFeature, IdListFeature, Schema, SequenceFeature, Task
from deltarec.embeddings.policies import OwnRows
from deltarec.embeddings.tables import TableSpec
from deltarec.metrics import METRICS
from deltarec.models import TEXT_ADAPTORS
from deltarec.models.roles import GraphConfig
from deltarec.optimizers import SGD, Constant, LanguageModelOptimizer
from deltarec.text.language_model import LanguageModelConfig
from deltarec.text.prompt import features_of

if TYPE_CHECKING:
    from deltarec.job import Job


def check(job: "Job") -> None:
    """Refuses what no part of the configuration can know alone.

    Raises:
        ValueError: names the key, what is wrong, and what to do.
    """
    _check_pairs(job)  # before all else: what the reader draws depends on them
    schema = job.data_schema
    _check_names(job, schema)
    _check_tables(job, schema)
    _check_assignment(job, schema)
    _check_lists(job, schema)
    _check_sequences(job, schema)
    _check_text(job, schema)
    _check_language_model(job, schema)
    _check_tasks(job)
    _check_early_stopping(job)
    _check_scenario(job)
    _check_balance(job)
    _check_stream(job)


def _check_names(job: "Job", schema: Schema) -> None:
    """Tables and encoders are modules of these names, which PyTorch does not always admit."""
    modules = [(f"embedding.tables.{name}", name) for name in job.embedding.tables]
    modules += [(f"features.{name}", name) for name in schema.sequences]
    for key, name in modules:
        if not name or "." in name or hasattr(nn.ModuleDict, name) or name == "training":
            raise ValueError(
                f"{key}: PyTorch admits no module of the name '{name}'; choose another, and "
                "let 'table' or 'column' of the feature say which it means"
            )


def _check_tables(job: "Job", schema: Schema) -> None:
    """Every feature has a table, and every table a feature."""
    for name, feature in schema.sparse.items():
        if schema.table(name) not in job.embedding.tables:
            raise ValueError(
                f"features.{name}: there is no table '{schema.table(name)}'; "
                f"declare embedding.tables.{schema.table(name)} or name another by 'table'"
            )
        rows = schema.table_rows[schema.table(name)]
        is_raw = schema.table(name) in schema.raw_tables
        if not is_raw and not 0 <= feature.default < rows:
            raise ValueError(f"features.{name}.default: {feature.default} is not below {rows}")
    unused = job.embedding.tables.keys() - {schema.table(name) for name in schema.sparse}
    if unused:
        raise ValueError(f"embedding.tables.{min(unused)}: no feature uses this table")


def _check_assignment(job: "Job", schema: Schema) -> None:
    wants_rows = job.model.pair is not None or job.model.graph is not None
    if wants_rows and schema.raw_tables:
        raise ValueError(
            f"embedding.tables.{min(schema.raw_tables)}.assignment: the ids of pairwise tasks "
            "and graphs are rows, among which negatives are drawn; leave it out"
        )
    tables = job.agent_tables()
    if not tables:
        return
    where, agent = f"embedding.tables.{min(tables)}.assignment", job.embedding.agent
    if job.stream is None:
        raise ValueError(f"{where}: autoassign learns after each partition; set 'stream'")
    alone = tables - {schema.table(n) for n, f in job.features.items() if f.kind == "id"}  # pyright: ignore
    if alone:
        raise ValueError(
            f"embedding.tables.{min(alone)}.assignment: autoassign learns by a feature of kind "
            "id, and this table has none; choose another policy"
        )
    if not any(task.kind == "binary" for task in job.tasks.values()):
        raise ValueError(f"{where}: autoassign learns by the loss of a binary task; add one")
    _check_discount(job, "embedding.agent.gamma", agent.gamma)
    if not agent.critic and not agent.bce:
        raise ValueError("embedding.agent: learns of nothing; set critic to true, or bce above 0")
    by_gradients = issubclass(BALANCERS[job.balance.name], GradientBalancer)  # pyright: ignore
    if agent.bce and by_gradients and len(job.tasks) > 1:
        raise ValueError(
            f"embedding.agent.bce: {agent.bce} takes the losses' gradient, which balance "
            f"{job.balance.name} never sums; set it to 0, or balance by losses"  # pyright: ignore
        )


def _check_lists(job: "Job", schema: Schema) -> None:
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
            if table in job.agent_tables():
                user = "autoassign"
            if job.balanced_by_row:
                user = f"balance {job.balance.name}"  # pyright: ignore
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


def _check_sequences(job: "Job", schema: Schema) -> None:
    for name, sequence in schema.sequences.items():
        if sequence.aligned_with is not None:
            _check_aligned(schema, name, sequence, sequence.aligned_with)
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


def _check_text(job: "Job", schema: Schema) -> None:
    nodes = [table for table in job.node_tables() if table in schema.frozen_tables]
    if nodes:
        raise ValueError(
            f"embedding.tables.{nodes[0]}.frozen: a graph's nodes are trained; leave it out, "
            "or give users and items tables of their own"
        )
    if job.model.text is None:
        return
    kind = TEXT_ADAPTORS[job.model.text.name]  # pyright: ignore
    adapted = [name for name in schema.frozen if name not in job.model.texts]
    if not adapted:
        raise ValueError("model.text: is for frozen tables; give one embedding.tables.…frozen")
    if not kind.reads_codes:
        return
    _check_exact(job, {schema.table(name) for name in adapted}, "codes that model.text reads")
    for name in adapted:
        if isinstance(schema.sparse[name], IdListFeature):
            raise ValueError(
                f"features.{name}.kind: a list of codes cannot be pooled; make it a sequence"
            )


def _check_exact(job: "Job", names: set[str], what: str) -> None:
    """Tables of whole numbers must hold them as they are."""
    for name in sorted(names):
        table = job.embedding.tables[name]
        precision = table.precision or job.embedding.precision
        if precision != "fp32":
            raise ValueError(
                f"embedding.tables.{name}.precision: {precision} rounds the {what}; take fp32"
            )


def _check_language_model(job: "Job", schema: Schema) -> None:
    model = job.model
    method = BALANCERS[job.balance.name]  # pyright: ignore
    by_gradient = issubclass(method, (GradientBalancer, SampleBalancer))
    if model.align is not None and len(job.tasks) > 1 and by_gradient:
        raise ValueError(
            f"balance.name: '{job.balance.name}' weighs tasks by gradients or samples, which "  # pyright: ignore
            "losses of alignment do not have; choose another method"
        )
    if model.score is not None and model.score.task not in (None, *job.tasks):
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
    _check_exact(job, tokens, "tokens that a prompt is made of")


def _check_aligned(schema: Schema, name: str, sequence: SequenceFeature, first: str) -> None:
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
            f"features.{name}.target: leave it out, an aligned sequence has the target of '{first}'"
        )


def _check_tasks(job: "Job") -> None:
    seen: dict[str, Task] = {}
    for name, task in job.tasks.items():
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


def _check_pairs(job: "Job") -> None:
    """Pairwise tasks have two sides, and a model of their own."""
    for name, task in job.tasks.items():
        pairwise = {"query", "item", "negatives", "negative_power", "num_items", "ranking"}
        foreign = {"label", "given", "on_invalid"} if task.kind == "pairwise" else pairwise
        plain = Task()
        found = [key for key in sorted(foreign) if getattr(task, key) != getattr(plain, key)]
        if found:
            raise ValueError(f"tasks.{name}.{found[0]}: is not for a {task.kind} task")
        if task.kind == "pairwise":
            _check_sides(job, name, task)
    kinds = {task.kind == "pairwise" for task in job.tasks.values()}
    if kinds == {True, False}:
        raise ValueError("tasks: either all are pairwise or none; make two jobs of them")
    if kinds != {job.model.pair is not None}:
        wanted = "model.pair" if kinds == {True} else "model.trunk and model.heads"
        raise ValueError(f"model: tasks of these kinds are for {wanted}")
    if job.model.pair is None:
        return
    graph = job.model.graph
    used = {
        f for task in job.tasks.values() for f in (*task.query, *task.item, *task.ranking.own)
    } | ({graph.user, *graph.behaviours} if graph else set())
    unused = [name for name in job.features if name not in used]
    if unused:
        raise ValueError(f"features.{unused[0]}: no side of a pairwise task has this feature")
    dropped = [name for name, f in job.features.items() if getattr(f, "dropout", 0)]
    if dropped:
        raise ValueError(f"features.{dropped[0]}.dropout: is not for pairwise tasks")
    if job.scenario is not None:
        raise ValueError("scenario: pairwise tasks know none; give the query its feature")
    if graph:
        _check_graph(job, graph)


def _check_sides(job: "Job", name: str, task: Task) -> None:
    for key, features in (("query", task.query), ("item", task.item)):
        unknown = [feature for feature in features if feature not in job.features]
        if unknown:
            raise ValueError(f"tasks.{name}.{key}: there is no feature '{unknown[0]}'")
        kinds = [job.features[feature].kind for feature in features]  # pyright: ignore
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
        if feature not in job.features or job.table_of(feature) != job.table_of(task.item[0]):
            raise ValueError(
                f"tasks.{name}.ranking.own: '{feature}' is no feature of the items' table "
                f"'{job.table_of(task.item[0])}'"
            )
    rows = _rows(job, task.item[0])
    if not 1 < (task.num_items or rows) <= rows:
        raise ValueError(
            f"tasks.{name}.num_items: the table of '{task.item[0]}' has {rows} rows, of which "
            "at least two must be items"
        )


def _check_graph(job: "Job", graph: GraphConfig) -> None:
    """Nodes are the rows of two tables, which nothing else looks up."""
    for feature in (graph.user, *graph.behaviours):
        if not isinstance(job.features.get(feature), IdFeature):
            raise ValueError(f"model.graph: there is no id feature '{feature}'")
    tables = {job.table_of(feature) for feature in graph.behaviours}
    user = job.table_of(graph.user)
    if len(tables) > 1 or user in tables:
        raise ValueError(
            f"model.graph.behaviours: their tables are {sorted(tables)}, that of "
            f"'{graph.user}' is '{user}'; all behaviours need one table, which is another"
        )
    known = job.embedding.resolved()
    used = {name: known[name] for name in (user, *tables) if name in known}
    if len({table.dim for table in used.values()}) > 1:
        raise ValueError(f"model.graph: tables {[*used]} are of one graph; give them one dim")
    for name, feature in job.features.items():
        if job.table_of(name) in used and not isinstance(feature, IdFeature):
            raise ValueError(f"features.{name}: only id features are for nodes of a graph")
    for name, table in used.items():
        if table.fake_quantised:
            raise ValueError(
                f"embedding.tables.{name}.quantisation_aware: is not for nodes of a graph"
            )


def _check_early_stopping(job: "Job") -> None:
    stopping = job.train.early_stopping
    if stopping is None:
        return
    if not job.data.valid:
        raise ValueError("train.early_stopping needs validation data: set data.valid")
    if stopping.task == []:
        raise ValueError("train.early_stopping.task: an empty list; leave it out for the first")
    for task in job.early_stopping_tasks:
        _check_stopping_task(job, task, stopping.metric)


def _check_stopping_task(job: "Job", task: str, metric: str) -> None:
    if task not in job.measured:
        raise ValueError(f"train.early_stopping.task: no task '{task}'")
    kind = job.measured[task]
    known = [name for name, metric in METRICS.items() if metric.kind == kind]
    if kind == "pairwise":
        known = job.metrics(task)
    if metric not in known:
        raise ValueError(
            f"train.early_stopping.metric: '{metric}' is not a metric of the {kind} "
            f"task '{task}': expected one of {', '.join(known)}"
        )
    if metric not in job.metrics(task):
        raise ValueError(f"train.early_stopping.metric: '{metric}' is by user: set data.user")


def _check_balance(job: "Job") -> None:
    if isinstance(job.balance, PeriodConfig) and len(job.tasks) > 1:
        _check_periods(job, job.balance)
    if isinstance(job.balance, RMTL.Config) and len(job.tasks) > 1:
        _check_episodes(job, job.balance)
    if not isinstance(job.balance, AdaTask.Config) or len(job.tasks) == 1:
        return
    optimizer = job.train.optimizer
    if not isinstance(optimizer.dense, SGD) or optimizer.dense.momentum:
        raise ValueError(
            f"train.optimizer.dense.name: got '{optimizer.dense.name}'; balance adatask is "  # pyright: ignore
            "itself the optimiser, and only 'sgd' without momentum hands its update on: set "
            "train.optimizer.dense and embedding.optimizer to {name: sgd, lr: …}"
        )
    if optimizer.accumulate > 1 or optimizer.clip_norm is not None:
        raise ValueError(
            "train.optimizer: balance adatask makes Adam's update at every batch; leave "
            "'accumulate' and 'clip_norm' out"
        )
    models = [job.model.language_model, job.model.text]
    if any(isinstance(model, LanguageModelConfig) and model.trained for model in models):
        _check_adatask_language(optimizer.language_model)
    for name, table in job.embedding.resolved().items():
        if table.frozen is None:
            _check_adatask_table(name, table)


def _check_adatask_language(optimizer: LanguageModelOptimizer) -> None:
    if not isinstance(optimizer.dense, SGD) or optimizer.dense.momentum:
        raise ValueError(
            f"train.optimizer.language_model.dense.name: got '{optimizer.dense.name}'; balance "  # pyright: ignore
            "adatask is the optimiser of a language model too, and only 'sgd' without momentum "
            "hands its update on"
        )
    if optimizer.every > 1:
        raise ValueError(
            f"train.optimizer.language_model.every: got {optimizer.every}; balance adatask makes "
            "its update at every batch; leave it out"
        )


def _check_adatask_table(name: str, table: TableSpec) -> None:
    if table.sharding == "data_parallel":
        raise ValueError(
            f"embedding.tables.{name}.sharding: 'data_parallel' leaves the table to the "
            "dense optimiser, which balance adatask makes plain sgd; choose another"
        )
    optimizer = table.optimizer.name  # pyright: ignore
    if optimizer != "sgd":
        raise ValueError(
            f"embedding.tables.{name}.optimizer.name: got '{optimizer}', which would divide the "
            "sum of what balance adatask has divided by row and task; only 'sgd' hands that on, "
            "so set it, or embedding.optimizer for all tables"
        )
    if isinstance(table.assignment, OwnRows):
        raise ValueError(
            f"embedding.tables.{name}.assignment: balance adatask keeps a state by row and task, "
            "which would outlive the id that had the row; take 'table' or 'hash'"
        )


def _check_periods(job: "Job", balance: PeriodConfig) -> None:
    if balance.period is None and job.train.epochs <= balance.first_periods:
        raise ValueError(
            f"balance.period: {balance.name} begins after {balance.first_periods} periods, which "  # pyright: ignore
            f"are epochs if not given, and train.epochs is {job.train.epochs}; give steps"
        )


def _check_episodes(job: "Job", balance: RMTL.Config) -> None:
    if job.model.pair is not None:
        raise ValueError(
            "balance.name: 'rmtl' looks at the representation of a sample, which pairwise "
            "tasks do not have; choose another method"
        )
    _check_discount(job, "balance.gamma", balance.gamma)


def _check_discount(job: "Job", key: str, gamma: float) -> None:
    """What comes after a sample is known only of users' samples in the order of the files."""
    mend = None
    if job.data.user is None:
        mend = "data.user"
    elif job.data.reader.shuffle:
        mend = "data.reader.shuffle to false"
    if gamma and mend:
        raise ValueError(f"{key}: {gamma} counts the user's next sample; set {mend}, or gamma to 0")


def _check_stream(job: "Job") -> None:
    pairwise = job.model.pair is not None
    if pairwise and job.data.slices:
        raise ValueError("data.slices: pairwise tasks are not evaluated by slice")
    if job.stream is None:
        return
    if pairwise:
        raise ValueError("stream: pairwise tasks are evaluated on whole data sets only")
    if job.data.valid:
        raise ValueError(
            "data.valid: leave it out, a stream is evaluated on each partition before it is "
            "trained on"
        )
    if job.train.epochs != 1:
        raise ValueError(f"train.epochs: got {job.train.epochs}; a stream is trained on once")
    if job.train.max_steps is not None:
        return
    schedule = job.train.optimizer.schedule
    endings = {"train.optimizer.schedule": not isinstance(schedule, Constant)}
    endings["balance"] = isinstance(job.balance, PMTRec.Config) or (
        isinstance(job.balance, RMTL.Config) and job.balance.warmup > 0
    )
    for key, needs_end in endings.items():
        if needs_end:
            raise ValueError(
                f"{key}: goes by the number of all steps, which a stream does not know; set "
                "train.max_steps, or choose another"
            )


def _check_scenario(job: "Job") -> None:
    if job.scenario is None:
        module = job.model.scenario.name  # pyright: ignore[reportAttributeAccessIssue]
        if module != "none":
            raise ValueError(
                f"model.scenario.name: '{module}' needs scenarios; set scenario.column and "
                "scenario.values, or the name to none"
            )
        return
    values: list[int | str] = list(job.scenario.values)
    if len(set(values)) < len(values):
        raise ValueError(f"scenario.values: one is there twice among {values}")
    if job.scenario.default is not None and job.scenario.default not in values:
        raise ValueError(f"scenario.default: {job.scenario.default!r} is not among scenario.values")


def _rows(job: "Job", feature: str) -> int:
    """Of the feature's table, 0 if there is none."""
    table = job.embedding.tables.get(job.table_of(feature))
    return table.rows if table else 0
