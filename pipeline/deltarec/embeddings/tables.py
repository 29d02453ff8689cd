# SPDX-License-Identifier: Apache-2.0
"""How embedding tables are declared: size, precision, sharding, optimiser."""

import math
from typing import Annotated, Any, ClassVar, Literal

import torchrec.optim
from pydantic import Field, model_validator
from torchrec.modules.embedding_configs import DataType

import deltarec_kernels as kernels
from deltarec.config import Config, Decay, OneOf
from deltarec.embeddings.frozen import FrozenConfig
from deltarec.embeddings.policies import ASSIGNMENTS, AgentConfig, FixedRows, OwnRows

Precision = Literal["fp32", "fp16", "int8", "int4", "int2"]
Codes = Literal["int8", "int4", "int2"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]
RoundingMode = Literal["stochastic", "deterministic"]
StepMode = Literal["fixed", "learned"]

DATA_TYPES: dict[str, DataType] = {
    "fp32": DataType.FP32,
    "fp16": DataType.FP16,
    "int8": DataType.INT8,
    "int4": DataType.INT4,
    "int2": DataType.INT2,
}
BITS = {"int8": 8, "int4": 4, "int2": 2}
"""Of the precisions whose tables our own kernels train; FBGEMM's train the others."""


class TableOptimizer(Config):
    """An optimiser that is fused into the backward pass."""

    lr: float = Field(gt=0)
    """Learning rate; the schedule of `train` scales it too."""

    torchrec_type: ClassVar[Any]
    runs_on_cpu: ClassVar[bool] = True
    """Whether FBGEMM has it there; our kernels have every one everywhere."""

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name"})

    def state_bytes(self, rows: int, columns: int) -> int:
        """Bytes of FBGEMM's state for a shard of a table."""
        raise NotImplementedError

    def for_kernels(self) -> kernels.Optimizer:
        """The same optimiser of our own kernels, which have no weight decay."""
        arguments = self.model_dump(exclude={"lr", "betas", "weight_decay"})
        beta1, beta2 = getattr(self, "betas", (0.9, 0.999))
        return kernels.Optimizer(learning_rate=self.lr, beta1=beta1, beta2=beta2, **arguments)


class SGD(TableOptimizer):
    """Plain stochastic gradient descent, without state."""

    name: Literal["sgd"]

    torchrec_type = torchrec.optim.SGD

    def state_bytes(self, rows: int, columns: int) -> int:
        return 0


class Adagrad(TableOptimizer):
    """Adagrad with one state value an element."""

    name: Literal["adagrad"]
    eps: float = 1e-8

    torchrec_type = torchrec.optim.Adagrad

    def state_bytes(self, rows: int, columns: int) -> int:
        return rows * columns * 4


class RowWiseAdagrad(TableOptimizer):
    """Adagrad with one state value a row (and a column shard): the usual one for large tables."""

    name: Literal["rowwise_adagrad"]
    eps: float = 1e-8  # no weight decay: FBGEMM's kernel takes the argument and does nothing

    torchrec_type = torchrec.optim.RowWiseAdagrad

    def state_bytes(self, rows: int, columns: int) -> int:
        return rows * 4


class Adam(TableOptimizer):
    """Adam with two state values an element; for fp32 and fp16 tables on GPU only."""

    name: Literal["adam"]
    betas: list[Decay] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    eps: float = 1e-8
    weight_decay: float = 0.0

    torchrec_type = torchrec.optim.Adam
    runs_on_cpu = False

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "betas": tuple(self.betas)}

    def state_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns * 4


class RowWiseAdam(Adam):
    """Adam with one second moment a row; for fp32 and fp16 tables on GPU only."""

    name: Literal["rowwise_adam"]  # pyright: ignore[reportIncompatibleVariableOverride]

    torchrec_type = torchrec.optim.PartialRowWiseAdam

    def state_bytes(self, rows: int, columns: int) -> int:
        return rows * (columns + 1) * 4


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": Adam,
    "rowwise_adam": RowWiseAdam,
}
STEP_OPTIMIZERS: dict[str, type[TableOptimizer]] = {"sgd": SGD, "adagrad": Adagrad, "adam": Adam}


class Alpt(Config):
    """How steps are learned (Li et al., Adaptive Low-Precision Training, AAAI 2023)."""

    passes: Literal["two", "one"] = "two"
    """Whether the steps' gradient comes from a second forward and backward over the updated rows,
    as in the paper, or from the first one, which costs nothing and is an approximation."""
    step_optimizer: Annotated[TableOptimizer, OneOf(STEP_OPTIMIZERS)] = Adam(name="adam", lr=2e-5)
    """Its state is one fp32 number (adagrad) or two (adam) for each row and column block."""
    gradient_scale: Literal["bdq", "dq", "none"] = "bdq"
    """Factor on the steps' gradient: 1 / sqrt(global batch size x columns that share a step x
    largest code), the same without the batch size, or 1."""


class Table(Config):
    """One embedding table; what is not given here is taken from `embedding`."""

    rows: int = Field(gt=0)
    """Ids 0 to rows - 1; with `assignment` any 64-bit ids, which get rows."""
    assignment: Annotated[Config, OneOf(ASSIGNMENTS, key="policy")] | None = None
    """How ids get rows; without it ids are rows."""
    dim: int | None = Field(default=None, gt=0)
    precision: Precision | None = None
    sharding: Sharding | None = None
    column_block: int | None = Field(default=None, gt=0)
    """Column-wise shards are this many columns wide (the last one may be narrower). Row-wise
    optimiser state is kept by row and shard, and of a quantised table by row and block, as the step
    is, so another value trains another model."""
    init_std: float | None = Field(default=None, gt=0)
    rounding: RoundingMode | None = None
    step: StepMode | None = None
    initial_step: float | None = Field(default=None, gt=0)
    quantisation_aware: Codes | None = None
    frozen: FrozenConfig | None = None
    """Files that the rows come from, such as vectors of text; they are not trained then. Ids that
    the files lack have zeros."""


class EmbeddingConfig(Config):
    """The embedding tables, and what holds for all that do not say otherwise."""

    dim: int = Field(default=16, gt=0)
    """Columns of a table."""
    precision: Precision = "fp32"
    """What the weights are stored in; results of a look-up are always fp32."""
    sharding: Sharding = "auto"
    """How tables are divided among processes; `auto` leaves it to TorchRec's planner."""
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the normal distribution that weights start from."""
    optimizer: Annotated[TableOptimizer, OneOf(TABLE_OPTIMIZERS)] = RowWiseAdagrad(
        name="rowwise_adagrad", lr=0.05
    )
    """Fused into the backward pass; data-parallel tables are left to `train.optimizer`."""
    rounding: RoundingMode = "stochastic"
    """Of the codes of int8, int4 and int2 tables."""
    step: StepMode = "learned"
    """The value of an int8, int4 or int2 table is its code times a step: fixed for all rows (LPT),
    or learned for each row and column block (ALPT)."""
    initial_step: float | None = Field(default=None, gt=0)
    """By the rule of LSQ if not given: 2 mean|w| / sqrt(largest code) of the initial weights."""
    alpt: Alpt = Alpt()
    """How steps are learned."""
    agent: AgentConfig = AgentConfig()
    """Of tables with `policy: autoassign`: how the one that decides learns."""
    quantisation_aware: Codes | None = None
    """The usual way to such codes, for comparison: fp32 tables, of which the model sees the nearest
    codes' values with one learned step a table (LSQ, Esser et al., 2020). It saves no memory while
    it trains. The step starts at `initial_step` and is left to `train.optimizer`."""
    tables: dict[str, Table]
    """The tables by name; a feature uses the table of its own name unless it names another."""

    @model_validator(mode="after")
    def _consistent(self) -> "EmbeddingConfig":
        for name, table in self.tables.items():
            spec = TableSpec.of(name, table, self)
            if table.frozen is not None:
                trained = ("init_std", "rounding", "step", "initial_step", "quantisation_aware")
                given = [key for key in trained if getattr(table, key) is not None]
                ids_are_rows = isinstance(table.assignment, FixedRows | None)
                given += [] if ids_are_rows else ["assignment"]
                if given:
                    raise ValueError(
                        f"tables.{name}.{given[0]}: is for tables that are trained, this one is "
                        "frozen; leave one of the two out"
                    )
            for key in ("rounding", "step", "initial_step"):
                aware = key == "initial_step" and spec.fake_quantised
                if not (spec.quantisation or aware) and getattr(table, key) is not None:
                    raise ValueError(
                        f"tables.{name}.{key}: is for int8, int4 and int2 tables, this one is "
                        f"{spec.precision}"
                    )
            if spec.fake_quantised and spec.precision != "fp32":
                raise ValueError(
                    f"tables.{name}.quantisation_aware: is for fp32 tables, this one is "
                    f"{spec.precision}; give precision or quantisation_aware, not both"
                )
            if spec.quantisation is not None:
                spec.check_quantised()
        return self

    def resolved(self) -> dict[str, "TableSpec"]:
        """Each table with everything it inherits."""
        return {name: TableSpec.of(name, table, self) for name, table in self.tables.items()}


class Quantisation(Config):
    """How a table of integer codes is trained, resolved."""

    bits: int
    rounding: RoundingMode
    initial_step: float
    alpt: Alpt | None
    """None: steps are fixed."""

    @property
    def step_optimizer(self) -> kernels.Optimizer | None:
        return self.alpt.step_optimizer.for_kernels() if self.alpt else None

    @property
    def two_passes(self) -> bool:
        return self.alpt is not None and self.alpt.passes == "two"


class FakeQuantisation(Config):
    """What the model sees of an fp32 table that is trained to be quantised, resolved."""

    bits: int
    initial_step: float


class TableSpec(Config):
    """One table, resolved."""

    name: str
    rows: int
    dim: int
    precision: Precision
    sharding: Sharding
    column_block: int
    init_std: float
    optimizer: TableOptimizer
    quantisation: Quantisation | None
    fake_quantised: FakeQuantisation | None
    assignment: Config | None = None
    """None: ids are rows."""
    frozen: FrozenConfig | None = None

    @classmethod
    def of(cls, name: str, table: Table, defaults: EmbeddingConfig) -> "TableSpec":
        dim = table.dim or defaults.dim
        precision = table.precision or defaults.precision
        init_std = table.init_std or defaults.init_std
        aware = table.quantisation_aware or defaults.quantisation_aware
        given = table.initial_step or defaults.initial_step
        quantisation = fake = None
        if table.frozen is not None:
            aware = given = None
        learned = table.frozen is None and (table.step or defaults.step) == "learned"
        if precision in BITS:
            bits = BITS[precision]
            quantisation = Quantisation(
                bits=bits,
                rounding=table.rounding or defaults.rounding,
                initial_step=given or lsq_step(init_std, bits),
                alpt=defaults.alpt if learned else None,
            )
        if aware:
            bits = BITS[aware]
            step = given or lsq_step(init_std, bits)
            fake = FakeQuantisation(bits=bits, initial_step=step)
        assignment = None if isinstance(table.assignment, FixedRows) else table.assignment
        rows, sharding = table.rows, table.sharding or defaults.sharding
        if isinstance(assignment, OwnRows):
            rows, sharding = _owned_rows(name, rows, sharding, assignment.buckets)
        return cls(
            name=name,
            rows=rows,
            dim=dim,
            precision=precision,
            sharding=sharding,
            column_block=table.column_block or dim,
            init_std=init_std,
            optimizer=SGD(name="sgd", lr=1.0) if table.frozen else defaults.optimizer,  # no state
            quantisation=quantisation,
            fake_quantised=fake,
            assignment=assignment,
            frozen=table.frozen,
        )

    @property
    def data_type(self) -> DataType:
        return DATA_TYPES[self.precision]

    def weight_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the weights of a shard; codes and steps of a quantised table."""
        if self.quantisation is None:
            return rows * columns * {"fp32": 4, "fp16": 2}[self.precision]
        codes = kernels.row_bytes(columns, self.quantisation.bits)
        return rows * (codes + 4 * self._blocks(columns))

    def state_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the fused optimisers' state of a shard: of the rows, and of their steps."""
        if self.quantisation is None:
            return self.optimizer.state_bytes(rows, columns)
        step_optimizer = self.quantisation.step_optimizer
        blocks = self._blocks(columns)
        kinds = self.optimizer.for_kernels().moments
        values = kinds.count("element") * columns + kinds.count("row") * blocks
        if step_optimizer:
            values += blocks * sum(kind is not None for kind in step_optimizer.moments)
        return rows * values * 4

    def check_quantised(self) -> None:
        """Refuse what our kernels cannot be.

        Raises:
            ValueError: the sharding, the column block or the optimiser does not go with codes.
        """
        where = f"tables.{self.name}"
        if self.sharding == "data_parallel":
            raise ValueError(
                f"{where}.sharding: a data_parallel table is trained by the dense optimiser, which "
                f"needs fp32 weights, and this one is {self.precision}; choose table_wise, row_wise"
                " or column_wise, or fp32"
            )
        block = self.column_block
        if self.dim % block or (block != self.dim and block % 8):
            raise ValueError(
                f"{where}.column_block: got {block}; of {self.precision} tables it must divide the "
                f"{self.dim} columns and be a multiple of 8: codes are packed and rounded by eights"
            )
        optimizers = {"optimizer": self.optimizer}
        if self.quantisation and self.quantisation.alpt:
            optimizers["alpt.step_optimizer"] = self.quantisation.alpt.step_optimizer
        for key, optimizer in optimizers.items():
            if getattr(optimizer, "weight_decay", 0.0):
                raise ValueError(
                    f"{key}.weight_decay: got {optimizer.weight_decay}, but the {self.precision} "  # pyright: ignore
                    f"table '{self.name}' is trained by kernels that have none; leave it out"
                )

    def _blocks(self, columns: int) -> int:
        return -(-columns // self.column_block)


def _owned_rows(name: str, rows: int, sharding: Sharding, buckets: int) -> tuple[int, Sharding]:
    """Rows and sharding of a table of which every rank owns whole buckets.

    Raises:
        ValueError: it has too few rows, or is to be sharded in another way.
    """
    where = f"tables.{name}"
    if sharding not in ("auto", "row_wise"):
        raise ValueError(
            f"{where}.sharding: got {sharding}; a rank assigns the rows that it owns, so choose "
            "row_wise, or policy hash or table"
        )
    if rows < 2 * buckets:
        raise ValueError(
            f"{where}.rows: {rows} rows are less than two for each of the "
            f"{buckets} buckets; take more rows, or set {where}.assignment.buckets"
        )
    return rows // buckets * buckets, "row_wise"


def lsq_step(init_std: float, bits: int) -> float:
    """LSQ's initial step, 2 mean|w| / sqrt(largest code), for w normal around 0."""
    mean = init_std * math.sqrt(2 / math.pi)
    return 2 * mean / math.sqrt(2 ** (bits - 1) - 1)


def table_name(parameter: str) -> str:
    """The table that a parameter `….TABLE.weight` of a collection belongs to."""
    return parameter.split(".")[-2]
