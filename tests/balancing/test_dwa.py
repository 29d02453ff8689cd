# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer

EPOCHS = [[[1.0, 4.0], [3.0, 4.0]], [[1.0, 3.0], [1.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]]
"""Losses by epoch, step and task; the first two have the means (2, 4) and (1, 3)."""


@pytest.mark.parametrize("period", [None, 2])
def test_weights_of_the_third_epoch(one_process: torch.device, period: int | None):
    method = balancer("dwa", "ab", period=period)
    found = []
    for epoch in EPOCHS:
        for losses in epoch:
            given = torch.tensor(losses)
            found.append(method(given) / given)
        method.after_epoch()
    torch.testing.assert_close(torch.stack(found[:4]), torch.ones(4, 2))
    wanted = 2 * (torch.tensor([1 / 2, 3 / 4]) / 2).softmax(0)
    torch.testing.assert_close(torch.stack(found[4:]), wanted.expand(2, 2))


def test_evaluations_do_not_count(one_process: torch.device):
    method = balancer("dwa", "ab").eval()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method(torch.ones(2))
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_batches_without_a_task_do_not_make_its_loss_smaller(one_process: torch.device):
    method = balancer("dwa", "ab", period=4)
    for period in ([1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]):
        for there in period:
            method.weights(torch.tensor([2.0, 3.0 * there]).double())
    torch.testing.assert_close(method.means, torch.tensor([[2.0, 3.0], [2.0, 3.0]]).double())
    found = method.weights(torch.tensor([2.0, 3.0]).double())
    torch.testing.assert_close(found, torch.ones(2).double())
