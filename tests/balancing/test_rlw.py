# SPDX-License-Identifier: Apache-2.0
import torch

from tests.balancing.small_problem import balancer


def test_new_weights_of_sum_one_each_step_by_seed_and_step():
    first, again = balancer("rlw"), balancer("rlw")
    draws = [first(torch.ones(3)) for _ in range(3)]
    for weights in draws:
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], again(torch.ones(3)))
    resumed = balancer("rlw")
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(resumed(torch.ones(3)), draws[1])


def test_normal_before_the_softmax():
    """The logarithm of a ratio of two weights is the difference of two normal numbers."""
    method = balancer("rlw", "ab")
    logs = torch.stack([method(torch.ones(2)).log() for _ in range(400)])
    gap = logs[:, 0] - logs[:, 1]
    assert abs(gap.mean()) < 0.3 and abs(gap.std() - 2**0.5) < 0.2
