# SPDX-License-Identifier: Apache-2.0
"""A trainer's tables without TorchRec's sharding, for references by ordinary autograd."""

from typing import Any

import torch
from torch import Tensor

from deltarec.embeddings.collections import EmbeddingTables
from deltarec.trainer import Trainer
from tests.embeddings.quantised_job import whole_state
from tests.embeddings.test_torchrec_traps import full_tables


def plain_tables(trainer: Trainer) -> Any:
    """Tables of one process, fp32, with the weights that the trainer's have now."""
    specs = trainer.job.embedding.resolved()
    plain = {name: spec.model_copy(update={"precision": "fp32"}) for name, spec in specs.items()}
    tables: Any = EmbeddingTables(trainer.schema, plain).to_empty(device="cpu")
    weights = whole_tables(trainer)
    for table, weight in by_table(tables).items():
        weight.copy_(weights[table])
    return tables


def whole_tables(trainer: Trainer) -> dict[str, Tensor]:
    """The weights `[rows, D]` of a trainer's tables, by name; of int8 ones what codes stand for."""
    if not trainer.quantised:
        return full_tables(trainer.model)
    state, found = whole_state(trainer), {}
    for name in trainer.quantised:
        codes, step = state[f"{name}.codes"].view(torch.int8), state[f"{name}.step"]
        found[name] = codes * step.repeat_interleave(codes.shape[1] // step.shape[1], 1)
    return found


def by_table(tables: Any) -> dict[str, Tensor]:
    """The weights `[rows, D]` of plain tables, by name, without their gradients."""
    return {path.split(".")[-2]: p.detach() for path, p in tables.named_parameters()}
