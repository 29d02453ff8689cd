# SPDX-License-Identifier: Apache-2.0
"""Metrics of ranks, by hand: two queries, of three held-out items and of one."""

import math

import pytest
import torch

from deltarec.metrics import RANKING_METRICS, larger_is_better

RANKS, QUERY = torch.tensor([1, 4, 9, 3]), torch.tensor([0, 0, 0, 1])


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("recall", 4, [2 / 3, 1.0]),
        ("recall", 2, [1 / 3, 0.0]),
        ("hr", 2, [1.0, 0.0]),
        ("hr", 3, [1.0, 1.0]),
        ("ndcg", 2, [1 / (1 + 1 / math.log2(3)), 0.0]),
        ("ndcg", 4, [(1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2), 1 / 2]),
    ],
)
def test_values(name: str, k: int, expected: list[float]):
    found = RANKING_METRICS[name](k).values(RANKS, QUERY, 2)
    assert found.tolist() == pytest.approx(expected)


def test_larger_is_better():
    assert larger_is_better("ndcg@20") and larger_is_better("auc") and not larger_is_better("rmse")
