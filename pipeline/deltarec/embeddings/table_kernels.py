# SPDX-License-Identifier: Apache-2.0
"""What looks tables up on this rank, FBGEMM's kernels and ours alike: their memory, and which rows.

A forward looks up the rows that its backward updates, so whoever must know what will change (a
checkpoint that is copied while training goes on, one that holds changed rows alone) watches
forwards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from deltarec.embeddings.quantised_collections import lookup_modules
from deltarec.embeddings.quantised_kernel import QuantisedKernel


@dataclass(frozen=True)
class TableKernel:
    """What looks up several tables."""

    tables: list[list[Tensor]]
    """Of each table all tensors with its rows: weights or codes and steps, optimisers' state."""
    features: list[int]
    """The table of each feature."""
    ids_of: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Tensor, Tensor]]
    """From the arguments of a look-up: ids `[n]`, feature after feature, and offsets `[features x
    batch + 1]`, where each sample of each feature begins."""


def table_kernels(model: nn.Module) -> Iterator[tuple[nn.Module, TableKernel]]:
    """The kernels of a sharded model, and the modules whose forward is their look-up."""
    for module in dict.fromkeys(lookup_modules(model)):
        if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen):
            yield module, _fbgemm(module)
        elif isinstance(module, QuantisedKernel):
            yield module, _quantised(module)


def _fbgemm(module: SplitTableBatchedEmbeddingBagsCodegen) -> TableKernel:
    weights = module.split_embedding_weights()
    states = module.split_optimizer_states() or [() for _ in weights]  # SGD has none

    def ids_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, Tensor]:
        inputs = dict(zip(("indices", "offsets"), arguments, strict=False)) | named
        return inputs["indices"], inputs["offsets"]

    tables = [[weight, *state] for weight, state in zip(weights, states, strict=True)]
    return TableKernel(tables, list(module.feature_table_map), ids_of)


def _quantised(module: QuantisedKernel) -> TableKernel:
    tables = module.tables

    def ids_of(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, Tensor]:
        (features,) = (*arguments, *named.values())
        return features.values(), features.offsets()

    return TableKernel(
        [
            [tables.codes_of(i), tables.step_of(i), *tables.state_of(i).values()]
            for _, i, _ in module.shards()
        ],
        tables.features[:, 0].tolist(),
        ids_of,
    )
