# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.layers.jagged import jagged_softmax, jagged_sum


@pytest.mark.parametrize("lengths", [[2, 0, 3, 1, 0], [0, 0], [], [4]])
def test_equal_the_loop_over_lists(lengths: list[int]):
    values = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(sum(lengths), 1, dtype=torch.float64, requires_grad=True)
    parts = torch.tensor(lengths, dtype=torch.int64)
    weights = jagged_softmax(scores, parts)
    got = jagged_sum(values * weights, parts)
    wanted = [
        (v * s.exp() / s.exp().sum()).sum(0)
        for v, s in zip(values.split(lengths), scores.split(lengths), strict=True)
    ]
    assert got.shape == (len(lengths), 3)
    torch.testing.assert_close(got, torch.stack(wanted) if wanted else torch.zeros_like(got))
    if wanted:
        grads = (
            torch.autograd.grad(y.square().sum(), [values, scores], retain_graph=True)
            for y in (got, torch.stack(wanted))
        )
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[1e4], [1e4], [-1e4], [-2e4]])
    found = jagged_softmax(scores, torch.tensor([2, 0, 2]))
    assert found.flatten().tolist() == [0.5, 0.5, 1.0, 0.0]
