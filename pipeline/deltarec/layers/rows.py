# SPDX-License-Identifier: Apache-2.0
"""What dropout and batch normalisation know of the batch, inside modules that see other rows of it.

Both are told of the batch's samples before the forward, one a row. A module that is given some of
the samples, or several rows a sample (attention over a sequence), is run `with seeing(...)`: the
same sample then has the same mask wherever it stands, on any rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltarec.layers.batch_norm import BatchStatistics
from deltarec.layers.dropout import Keyed
from deltarec_kernels.splitmix import mix64


@contextmanager
def seeing(model: nn.Module, rows: Tensor, occurrence: Tensor | None = None) -> Iterator[None]:
    """Let a model see the given rows of what its surroundings see.

    Args:
        model: its input within the context is `[n, D]`.
        rows: int64 `[n]`, the row of the surroundings that each row of the input belongs to.
        occurrence: int64 `[n]`, tells rows that belong together apart; needed if there are any.
    """
    keyed = [(m, m.keys) for m in model.modules() if isinstance(m, Keyed)]
    norms = [(m, m.real) for m in model.modules() if isinstance(m, BatchStatistics)]
    for module, keys in keyed:
        if keys is not None:
            keys = keys[rows]
            module.keys = keys if occurrence is None else mix64(keys + occurrence)
    for norm, real in norms:
        if real is not None:
            norm.real = real[rows]
    try:
        yield
    finally:
        for module, keys in keyed:
            module.keys = keys
        for norm, real in norms:
            norm.real = real


def occurrences(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The list that each element of jagged lists belongs to, and its place in it.

    Args:
        lengths: int64 `[B]`.
        total: their sum, which a GPU would have to be waited for.

    Returns:
        Two int64 tensors `[total]`.
    """
    rows = torch.repeat_interleave(lengths, output_size=total)
    starts = lengths.cumsum(0) - lengths
    return rows, torch.arange(total, device=rows.device) - starts[rows]
