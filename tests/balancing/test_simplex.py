# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from deltarec.balancing.simplex import nearest, shortest


def test_no_point_of_a_grid_is_shorter():
    vectors = torch.randn(3, 4, dtype=torch.float64)
    gram = vectors @ vectors.T
    found = shortest(gram)
    for i, j in itertools.product(range(21), range(21)):
        if i + j <= 20:
            other = torch.tensor([i, j, 20 - i - j]).double() / 20
            assert other @ gram @ other >= found @ gram @ found - 1e-12


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_parallel_and_opposite_vectors(scale: float):
    opposite = scale * torch.tensor([[1.0, -2.0], [-2.0, 4.0]]).double()
    torch.testing.assert_close(shortest(opposite), torch.tensor([2 / 3, 1 / 3]).double())
    equal = shortest(scale * torch.ones(3, 3).double())
    assert equal.sum().item() == pytest.approx(1) and (equal >= 0).all()


def test_the_nearest_point_of_a_simplex():
    found = nearest(torch.tensor([0.9, 0.4, -1.0]).double(), 1.0)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25, 0.0]).double())
    inside = torch.tensor([0.2, 0.3]).double()
    torch.testing.assert_close(nearest(inside, 0.5), inside)
