# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.balancing.static import Static
from deltarec.config import validate


def static(weights: dict[str, float]) -> Static:
    config = validate(Static.Config, {"name": "static", "weights": weights}, "test")
    return Static(config, ["click", "buy", "time"])


def test_weighs_by_task_and_one_where_none_is_given():
    model = static({"time": 0.25, "click": 2})
    losses = torch.tensor([0.5, 3.0, 8.0], requires_grad=True)
    balanced = model(losses)
    balanced.sum().backward()
    assert balanced.tolist() == [1.0, 3.0, 2.0]
    assert losses.grad is not None and losses.grad.tolist() == [2.0, 1.0, 0.25]
    assert not model.state_dict(), "weights are configuration, not state"


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match=r"weights: no task is named \['bye'\]; have \['click'"):
        static({"bye": 2.0, "buy": 1.0})


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weights.click: got -1.0: input should be greater"):
        static({"click": -1.0})
