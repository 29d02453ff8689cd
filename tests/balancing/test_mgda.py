# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.balancing.mgda import MGDA


def mgda(normalise: str = "none") -> MGDA:
    return MGDA(MGDA.Config(name="mgda", normalise=normalise), ["a", "b", "c"])  # pyright: ignore


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_the_point_of_least_norm(tasks: int):
    """Its inner product with every gradient is at least its own square, and equal where w > 0."""
    gradients = torch.randn(tasks, 5, dtype=torch.float64) + 0.3
    gram = gradients @ gradients.T
    weights = mgda().weights(gram, torch.ones(tasks).double())
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)
    products = gram @ weights
    square = weights @ products
    assert (products >= square - 1e-9).all()
    torch.testing.assert_close(
        products[weights > 1e-9], square.expand(int((weights > 1e-9).sum())), rtol=0, atol=1e-6
    )


def test_two_tasks_have_a_closed_form():
    first, second = torch.randn(2, 4, dtype=torch.float64)
    gap = first - second
    share = ((second - first) @ second / (gap @ gap)).clamp(0, 1)
    pair = torch.stack([first, second])
    weights = mgda().weights(pair @ pair.T, torch.ones(2).double())
    torch.testing.assert_close(weights[0], share, atol=1e-9, rtol=0)


def test_normalised_gradients_do_not_depend_on_their_scale():
    gradients = torch.randn(3, 5, dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0, 3.0]).double()
    scaled = gradients * torch.tensor([[10.0], [1.0], [0.1]])
    found, wanted = (mgda("l2").weights(g @ g.T, losses) for g in (scaled, gradients))
    torch.testing.assert_close(found, wanted)
