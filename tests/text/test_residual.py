# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from deltarec.text.residual import ResidualConfig, kmeans, residual_codes


def test_two_levels_find_what_was_planted():
    """Points are the sum of one of four far corners and one of three near ones."""
    far = torch.tensor([[10.0, 0, 0], [-10, 0, 0], [0, 10, 0], [0, -10, 0]])
    near = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0.5, 0.5, 0]])
    planted = list(itertools.product(range(4), range(3))) * 5
    points = torch.stack([far[a] + near[b] for a, b in planted])
    codes, found = residual_codes(points, ResidualConfig(levels=2, size=4))
    assert codes.min() == 1 and codes.max() <= 4
    by_far = {
        a: {int(c) for (x, _), c in zip(planted, codes[:, 0], strict=True) if x == a}
        for a in range(4)
    }
    assert sorted(map(len, by_far.values())) == [1] * 4 and len(set.union(*by_far.values())) == 4
    assert found["explained"] > 0.999 and found["shared"] == 1.0
    again, _ = residual_codes(points, ResidualConfig(levels=2, size=4))
    assert torch.equal(again, codes)


def test_each_level_leaves_less():
    points = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    explained = [
        residual_codes(points, ResidualConfig(levels=n, size=8))[1]["explained"] for n in (1, 2, 4)
    ]
    assert 0 < explained[0] < explained[1] < explained[2] < 1


def test_equal_points_and_centres_without_points():
    random = torch.Generator().manual_seed(0)
    points = torch.tensor([[1.0, 1.0]] * 5 + [[2.0, 2.0]])
    centres = kmeans(points, 4, 5, random)
    assert centres.isfinite().all() and {tuple(c) for c in centres.tolist()} == {(1, 1), (2, 2)}


def test_too_few_vectors():
    with pytest.raises(ValueError, match="4 centres for 3 vectors; take fewer"):
        residual_codes(torch.zeros(3, 2), ResidualConfig(size=4))
