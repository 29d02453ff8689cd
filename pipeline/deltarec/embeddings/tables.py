# SPDX-License-Identifier: Apache-2.0
"""How embedding tables are declared: size, precision, sharding, optimiser."""

from typing import Annotated, Any, ClassVar, Literal

import torchrec.optim
from pydantic import Field
from torch import nn
from torchrec.modules.embedding_configs import DataType

from deltarec.config import Config, OneOf

Precision = Literal["fp32", "fp16"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]

DATA_TYPES: dict[str, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class TableOptimizer(Config):
    """An optimiser that FBGEMM fuses into the backward pass."""

    lr: float = Field(gt=0)
    """Learning rate; the schedule of `train` scales it too."""

    torchrec_type: ClassVar[Any]
    runs_on_cpu: ClassVar[bool] = True

    def arguments(self) -> dict[str, float]:
        return self.model_dump(exclude={"name"})

    def state_bytes(self, rows: int, columns: int) -> int:
        """Bytes of state for a shard of a table."""
        raise NotImplementedError


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
    eps: float = 1e-8
    weight_decay: float = 0.0

    torchrec_type = torchrec.optim.RowWiseAdagrad

    def state_bytes(self, rows: int, columns: int) -> int:
        return rows * 4


class Adam(TableOptimizer):
    """Adam with two state values an element; FBGEMM has it on GPU only."""

    name: Literal["adam"]
    betas: list[float] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    eps: float = 1e-8
    weight_decay: float = 0.0

    torchrec_type = torchrec.optim.Adam
    runs_on_cpu = False

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "betas": tuple(self.betas)}

    def state_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns * 4


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "adam": Adam,
}


class Table(Config):
    """One embedding table; what is not given here is taken from `embedding`."""

    rows: int = Field(gt=0)
    """Ids 0 to rows - 1."""
    dim: int | None = Field(default=None, gt=0)
    precision: Precision | None = None
    sharding: Sharding | None = None
    column_block: int | None = Field(default=None, gt=0)
    """Column-wise shards are this many columns wide (the last one may be narrower). Row-wise
    optimiser state is kept by row and shard, so another value trains another model."""
    init_std: float | None = Field(default=None, gt=0)


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
    tables: dict[str, Table]
    """The tables by name; a feature uses the table of its own name unless it names another."""

    def resolved(self) -> dict[str, "TableSpec"]:
        """Each table with everything it inherits."""
        return {name: TableSpec.of(name, table, self) for name, table in self.tables.items()}


class TableSpec(Config):
    """One table, resolved."""

    name: str
    rows: int
    dim: int
    precision: Precision
    sharding: Sharding
    column_block: int
    init_std: float

    @classmethod
    def of(cls, name: str, table: Table, defaults: EmbeddingConfig) -> "TableSpec":
        dim = table.dim or defaults.dim
        return cls(
            name=name,
            rows=table.rows,
            dim=dim,
            precision=table.precision or defaults.precision,
            sharding=table.sharding or defaults.sharding,
            column_block=table.column_block or dim,
            init_std=table.init_std or defaults.init_std,
        )

    @property
    def data_type(self) -> DataType:
        return DATA_TYPES[self.precision]

    def weight_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the weights of a shard."""
        return rows * columns * {"fp32": 4, "fp16": 2}[self.precision]


def table_name(parameter: str) -> str:
    """The table that a parameter `….TABLE.weight` of a collection belongs to."""
    return parameter.split(".")[-2]


def is_table(module: nn.Module) -> bool:
    """Whether a module is a collection of tables."""
    return isinstance(module, (torchrec.EmbeddingBagCollection, torchrec.EmbeddingCollection))
