# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from deltarec.text.residual import ResidualConfig, fit, kmeans, residual_codes


def test_two_levels_find_what_was_planted():
    """Points are the sum of one of four far corners and one of three near ones."""
    far = torch.tensor([[10.0, 0, 0], [-10, 0, 0], [0, 10, 0], [0, -10, 0]])
    near = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0.5, 0.5, 0]])
    planted = list(itertools.product(range(4), range(3))) * 5
    points = torch.stack([far[a] + near[b] for a, b in planted])
    centres = fit(points, ResidualConfig(levels=2, size=4))
    codes, found = residual_codes(points, centres)
    assert codes.min() == 1 and codes.max() <= 4
    by_far = {
        a: {int(c) for (x, _), c in zip(planted, codes[:, 0], strict=True) if x == a}
        for a in range(4)
    }
    assert sorted(map(len, by_far.values())) == [1] * 4 and len(set.union(*by_far.values())) == 4
    assert found["explained"] > 0.999 and found["shared"] == 1.0
    again = fit(points, ResidualConfig(levels=2, size=4))
    assert all(torch.equal(*pair) for pair in zip(again, centres, strict=True))
    alone = residual_codes(points[7:8], centres)[0]
    assert torch.equal(alone, codes[7:8]), "codes do not depend on what stands beside"


def test_each_level_leaves_less():
    points = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    centres = [fit(points, ResidualConfig(levels=n, size=8)) for n in (1, 2, 4)]
    explained = [residual_codes(points, found)[1]["explained"] for found in centres]
    assert 0 < explained[0] < explained[1] < explained[2] < 1


def test_equal_points_and_centres_without_points():
    random = torch.Generator().manual_seed(0)
    points = torch.tensor([[1.0, 1.0]] * 5 + [[2.0, 2.0]])
    centres = kmeans(points, 4, 5, random)
    assert centres.isfinite().all() and {tuple(c) for c in centres.tolist()} == {(1, 1), (2, 2)}


def test_too_few_vectors():
    with pytest.raises(ValueError, match="4 centres for 3 vectors; take fewer"):
        fit(torch.zeros(3, 2), ResidualConfig(size=4))
