# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import Tensor

from deltarec.layers.graph import Adjacency, BehaviourGraphs, Normalisation, bipartite

USERS = np.array([0, 0, 1, 2, 2, 2, 0])
ITEMS = np.array([0, 1, 1, 0, 1, 3, 0])  # the first pair is there twice; user 3 and item 2 alone
SIZES = (4, 4)


def dense(users: np.ndarray, items: np.ndarray, sizes: tuple[int, int]) -> Tensor:
    """[[0, R], [Rᵀ, 0]]."""
    matrix = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    matrix[users, sizes[0] + items] = 1
    matrix[sizes[0] + items, users] = 1
    return matrix


@pytest.mark.parametrize("normalise", ["left", "right", "symmetric", "none"])
def test_propagation_and_its_gradient(normalise: Normalisation):
    matrix = dense(USERS, ITEMS, SIZES)
    degree = matrix.sum(1)
    inverse = torch.where(degree > 0, 1 / degree, 0)
    wanted = {
        "left": inverse.diag() @ matrix,
        "right": matrix @ inverse.diag(),
        "symmetric": inverse.sqrt().diag() @ matrix @ inverse.sqrt().diag(),
        "none": matrix,
    }[normalise]
    graph = Adjacency.of(bipartite(USERS, ITEMS, SIZES), normalise, torch.device("cpu"))
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6)):  # edges are fp32
        x = torch.randn(8, 70, dtype=dtype, requires_grad=True)  # of several blocks of columns
        upstream = torch.randn_like(x)
        got = graph.propagate(x)
        on_gpu = graph.matrix.sparse(dtype) @ x.detach()
        torch.testing.assert_close(got, on_gpu, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got, wanted.to(dtype) @ x, rtol=tolerance, atol=tolerance)
        [gradient] = torch.autograd.grad(got, x, upstream)
        expected = wanted.to(dtype).T @ upstream
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


def test_edges_left_out():
    """Of pairs that have one, either way round; the others, and all degrees, stay."""
    matrix = dense(USERS, ITEMS, SIZES)
    wanted = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    for user, item in ((0, 4), (2, 7)):
        wanted[user, item] = wanted[item, user] = 0
    graph = Adjacency.of(bipartite(USERS, ITEMS, SIZES), "left", torch.device("cpu"))
    part = graph.without(torch.tensor([0, 2, 0, 1, 3]), torch.tensor([4, 7, 4, 4, 7]))
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    torch.testing.assert_close(part.propagate(x), wanted @ x, rtol=1e-7, atol=1e-7)
    [gradient] = torch.autograd.grad(part.propagate(x), x, upstream)
    torch.testing.assert_close(gradient, wanted.T @ upstream, rtol=1e-7, atol=1e-7)


def test_no_edges_propagate_nothing():
    none = np.empty(0, dtype=np.int64)
    graph = Adjacency.of(bipartite(none, none, SIZES), "symmetric", torch.device("cpu"))
    x = torch.full((8, 3), torch.nan)
    torch.testing.assert_close(graph.propagate(x), torch.zeros(8, 3))
    less = graph.without(torch.tensor([0]), torch.tensor([4]))
    torch.testing.assert_close(less.propagate(x), torch.zeros(8, 3))


def test_induced_graphs_have_the_edges_among_their_nodes_and_degrees_of_these():
    graphs = BehaviourGraphs([bipartite(USERS, ITEMS, SIZES)], "left", torch.device("cpu"))
    nodes = torch.tensor([0, 2, 5])  # users 0 and 2, item 1; no edge to item 0, which both have
    part = dense(USERS, ITEMS, SIZES)[nodes][:, nodes]
    wanted = part / part.sum(1, keepdim=True)
    [got] = graphs.induced(nodes)
    x = torch.randn(3, 4)
    torch.testing.assert_close(got.propagate(x), wanted.float() @ x)
