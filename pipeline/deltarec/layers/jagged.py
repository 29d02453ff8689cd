# SPDX-License-Identifier: Apache-2.0
"""Operations on lists of vectors that lie one after the other, without padding."""

import torch
from torch import Tensor


def jagged_softmax(scores: Tensor, lengths: Tensor) -> Tensor:
    """The softmax within each list: `[sum of lengths, 1]` to the same.

    Args:
        scores: of the lists' elements, `[sum of lengths, 1]`.
        lengths: int64 `[L]`; lists may be empty.
    """
    lists = torch.repeat_interleave(lengths, output_size=len(scores))
    most = _reduce(scores.detach(), lengths, "max", initial=-torch.inf)
    exponentials = (scores - most[lists]).exp()
    return exponentials / jagged_sum(exponentials, lengths)[lists]


def jagged_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each list: `[sum of lengths, D]` to `[L, D]`; an empty one gives zeros."""
    return _reduce(values, lengths, "sum", initial=0.0)


def _reduce(values: Tensor, lengths: Tensor, reduction: str, initial: float) -> Tensor:
    # `unsafe` spares a GPU the check of the lengths, for which it would have to be waited
    return torch.segment_reduce(
        values, reduction, lengths=lengths, axis=0, unsafe=True, initial=initial
    )
