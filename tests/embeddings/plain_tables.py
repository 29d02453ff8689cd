# SPDX-License-Identifier: Apache-2.0
"""A trainer's tables without TorchRec's sharding, for references by ordinary autograd."""

from typing import Any

from torch import Tensor

from deltarec.embeddings.collections import EmbeddingTables
from deltarec.trainer import Trainer
from tests.embeddings.test_torchrec_traps import full_tables


def plain_tables(trainer: Trainer) -> Any:
    """Tables of one process with the weights that the trainer's have now."""
    tables: Any = EmbeddingTables(trainer.schema, trainer.job.embedding.resolved())
    tables = tables.to_empty(device="cpu")
    weights = full_tables(trainer.model)
    for table, weight in by_table(tables).items():
        weight.copy_(weights[table])
    return tables


def by_table(tables: Any) -> dict[str, Tensor]:
    """The weights `[rows, D]` of plain tables, by name, without their gradients."""
    return {path.split(".")[-2]: p.detach() for path, p in tables.named_parameters()}
