# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.balancing.small_problem import balancer


def turns(losses: list[float], steps: int, **options: object) -> str:
    """The task trained at each step."""
    method = balancer("alternating", **options)
    found = ""
    for _ in range(steps):
        weights = method.weights(torch.tensor(losses).double())
        assert sorted(weights.tolist())[:2] == [0.0, 0.0]
        found += "abc"[int(weights.argmax())] if weights.any() else "-"
    return found


def test_tasks_take_turns():
    assert turns([1.0, 1.0, 1.0], 6) == "abcabc"


def test_ratios_are_kept_and_spread_evenly():
    found = turns([1.0, 1.0, 1.0], 12, ratios={"a": 4.0})
    assert [found.count(task) for task in "abc"] == [8, 2, 2]
    assert "bb" not in found and "cc" not in found and "aaaaa" not in found


def test_a_task_without_samples_waits():
    assert turns([1.0, 0.0, 1.0], 4) == "acac"
    assert turns([0.0, 0.0, 0.0], 2) == "--"


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"balance.ratios: no task 'x'; have a, b, c"):
        balancer("alternating", ratios={"x": 1.0})


def test_after_an_absence_tasks_take_turns_as_before():
    method = balancer("alternating", "ab")
    for _ in range(50):
        assert method.weights(torch.tensor([1.0, 0.0]).double()).tolist() == [1, 0]
    turns = [int(method.weights(torch.ones(2).double()).argmax()) for _ in range(6)]
    assert turns in ([0, 1] * 3, [1, 0] * 3)
