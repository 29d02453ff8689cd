# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer, random_gradients, weights


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_the_fixed_point(tasks: int, scale: float):
    gradients = scale * random_gradients(tasks, 10)
    gradients[0] *= 100
    found = weights(balancer("nash_mtl", "abcdefgh"[:tasks], max_norm=None), gradients)
    assert (found > 0).all()
    torch.testing.assert_close(gradients @ (found @ gradients), 1 / found, rtol=1e-8, atol=0)


def test_the_update_is_cut_to_a_largest_norm():
    gradients = random_gradients(2)
    free, cut = (weights(balancer("nash_mtl", "ab", max_norm=n), gradients) for n in (None, 1.0))
    torch.testing.assert_close((cut @ gradients).norm(), torch.tensor(1.0).double())
    torch.testing.assert_close((free @ gradients).norm(), torch.tensor(2.0).double().sqrt())
    torch.testing.assert_close(cut / cut[0], free / free[0])
