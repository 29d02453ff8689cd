# SPDX-License-Identifier: Apache-2.0
"""What methods make of gradients that are not finite."""

import pytest
import torch

from deltarec.balancing import BALANCERS
from deltarec.balancing.balancer import WeightingBalancer
from tests.balancing.small_problem import balancer, random_gradients, task_gradients

METHODS = [name for name, method in BALANCERS.items() if issubclass(method, WeightingBalancer)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [torch.inf, 1e200, torch.nan])
def test_there_are_no_weights_for_them(one_process: torch.device, name: str, value: float):
    """Solvers would look for them for ever. The next loss stops the job."""
    gradients = random_gradients()
    gradients[1, 2] = value
    found, _ = task_gradients(gradients)
    balancer(name).combine(found)
    assert all(g.isnan().any() for g in found.combined_shared)
