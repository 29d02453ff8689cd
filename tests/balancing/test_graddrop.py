# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.balancing.draws import Place
from tests.balancing.small_problem import balancer, random_gradients, task_gradients


def combined(method, matrix: torch.Tensor) -> torch.Tensor:
    gradients, _ = task_gradients(matrix)
    method.combine(gradients)
    return gradients.combined_shared[0]


def test_one_sign_stays_an_element(one_process: torch.device):
    matrix = random_gradients(4, 400, shift=0.3)
    found = combined(balancer("graddrop", "abcd"), matrix)
    positive, negative = matrix.clamp(min=0).sum(0), matrix.clamp(max=0).sum(0)
    up = torch.isclose(found, positive)
    assert (up | torch.isclose(found, negative)).all()
    disagree = (positive > 0) & (negative < 0)
    share = (0.5 * (1 + matrix.sum(0) / matrix.abs().sum(0)))[disagree]
    spread = (share * (1 - share)).sum().sqrt()
    assert abs(up[disagree].sum() - share.sum()) < 4 * spread


def test_leak_keeps_a_share_of_the_sum(one_process: torch.device):
    matrix = random_gradients()
    all_kept = combined(balancer("graddrop", leak=1.0), matrix)
    torch.testing.assert_close(all_kept, matrix.sum(0))
    half, none = (combined(balancer("graddrop", leak=x), matrix) for x in (0.5, 0.0))
    torch.testing.assert_close(half, 0.5 * (all_kept + none))


def test_draws_belong_to_samples_positions_and_features():
    """However samples and features are divided among ranks and ordered."""
    widths = {"x": 3, "y": 2}
    index, lengths = torch.tensor([7, 3, 9]), torch.tensor([2, 0, 1])
    whole = Place(widths, index, lengths).uniform(5)
    last = Place({"y": 2, "x": 3}, index[2:], lengths[2:]).uniform(5)
    assert torch.equal(last[:, 2:], whole[2:, :3]) and torch.equal(last[:, :2], whole[2:, 3:])
    assert len(whole.unique()) == whole.numel()
    many = Place({"x": 50}, torch.arange(200)).uniform(6)
    assert many.min() >= 0 and many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.02)
