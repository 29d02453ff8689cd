# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from deltarec.balancing.draws import Place
from deltarec.balancing.gradients import TaskGradients
from tests.balancing.small_problem import balancer, random_gradients
from tests.small_job import small_job


def test_an_adam_for_each_task(one_process: torch.device):
    """The update is the sum of the steps of PyTorch's Adam, one on each task's gradients."""
    method = balancer("adatask", "ab")
    shared, own = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    method.prepare(["x"], [shared], [own])
    copies = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
    adams = [torch.optim.Adam([copy], lr=1.0) for copy in copies]
    for step in range(4):
        matrix = random_gradients(2, 8, seed=step)
        matrix[1, 4:] = 0  # the second task does not reach the last four
        vectors = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        losses = matrix @ torch.cat([shared, own]) + vectors.sum()
        place = Place({"x": 3}, torch.arange(2))
        gradients = TaskGradients(losses, [vectors], [shared], [own], [place])
        method.combine(gradients)
        parts = (matrix[0, :4], matrix[1, :4], matrix[0, 4:])
        for copy, adam, gradient in zip(copies, adams, parts, strict=True):
            copy.grad, copy.data = gradient.clone(), torch.zeros_like(copy)
            adam.step()
        torch.testing.assert_close(gradients.combined_shared[0], -(copies[0] + copies[1]))
        torch.testing.assert_close(gradients.combined_own[0], -copies[2])


def test_no_task_dominates_the_vectors_of_a_feature(one_process: torch.device):
    method = balancer("adatask", "ab")
    method.prepare(["x"], [], [])
    vectors = torch.zeros(1, 2, requires_grad=True)
    losses = torch.tensor([[30.0, 0.0], [0.0, 10.0]]) @ vectors.flatten()
    gradients = TaskGradients(losses, [vectors], [], (), [Place({"x": 2}, torch.arange(1))])
    method.combine(gradients)
    torch.testing.assert_close(gradients.combined_boundary[0], torch.tensor([[20.0, 20.0]]))


def test_another_dense_optimiser_is_refused(tmp_path: Path):
    options = {"balance": {"name": "adatask"}}
    with pytest.raises(ValueError, match=r"dense.name: got 'adam'; balance adatask is itself"):
        small_job(tmp_path, **options)
    options["train__optimizer__dense"] = {"name": "sgd", "lr": 0.1}
    with pytest.raises(ValueError, match=r"country.sharding: 'data_parallel' leaves"):
        small_job(tmp_path, **options)
    options["embedding__tables__country__sharding"] = "table_wise"  # pyright: ignore
    small_job(tmp_path, **options)
    with pytest.raises(ValueError, match=r"leave 'accumulate' and 'clip_norm' out"):
        small_job(tmp_path, train__optimizer__accumulate=2, **options)
