# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn

from deltarec.layers.dropout import Dropout, RowDropout, sample_keys, set_sample_keys

SAMPLES, UNITS = 2000, 64


def kept(index: Tensor, seed: int = 0, epoch: int = 0, layer: int = 0, p: float = 0.3) -> Tensor:
    """Which units of the samples survive: bool `[B, UNITS]`."""
    model = nn.Sequential(*[Dropout(p) for _ in range(layer + 1)])
    set_sample_keys(model, sample_keys(index, seed, epoch))
    return model[layer](torch.ones(len(index), UNITS)) > 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_at_the_rate_and_keeps_the_mean(p: float):
    dropout = Dropout(p)
    set_sample_keys(dropout, sample_keys(torch.arange(SAMPLES), 7, 0))
    x = torch.full((SAMPLES, UNITS), 3.0, requires_grad=True)
    y = dropout(x)
    dropped = y == 0
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(dropped.double().mean() - p) < 5 * deviation
    torch.testing.assert_close(y[~dropped], torch.full_like(y[~dropped], 3 / (1 - p)))
    y.sum().backward()
    torch.testing.assert_close(x.grad, (~dropped) / (1 - p))


def test_every_sample_and_every_unit_is_dropped_at_the_rate():
    mask = kept(torch.arange(SAMPLES), p=0.5).double()
    assert (mask.mean(0) - 0.5).abs().max() < 5 * 0.5 / SAMPLES**0.5
    assert (mask.mean(1) - 0.5).abs().max() < 5 * 0.5 / UNITS**0.5


def test_the_mask_belongs_to_the_sample_and_not_to_its_batch():
    index = torch.arange(100, 400)
    whole = kept(index)
    some = torch.randperm(300)[:70]
    assert torch.equal(kept(index[some]), whole[some])
    assert torch.equal(kept(index[:1]), whole[:1])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"layer": 1}, {"seed": -1}])
def test_seed_epoch_and_layer_draw_masks_that_have_nothing_in_common(other: dict[str, int]):
    index = torch.arange(SAMPLES)
    first, second = kept(index).double(), kept(index, **other).double()
    assert uncorrelated(first, second)


@pytest.mark.parametrize("shift", [1, 2, 64])
def test_neighbouring_samples_and_units_have_nothing_in_common(shift: int):
    mask = kept(torch.arange(SAMPLES)).double()
    assert uncorrelated(mask[shift:], mask[:-shift])
    shift %= UNITS
    assert shift == 0 or uncorrelated(mask[:, shift:], mask[:, :-shift])


def uncorrelated(first: Tensor, second: Tensor) -> bool:
    pair = torch.stack([first.flatten(), second.flatten()])
    return bool(torch.corrcoef(pair)[0, 1].abs() < 5 / first.numel() ** 0.5)


def test_nothing_is_dropped_in_evaluation_or_of_nothing():
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    dropout = Dropout(0.5)
    set_sample_keys(dropout, torch.empty(0, dtype=torch.int64))
    assert dropout(torch.empty(0, 4)).shape == (0, 4)


def test_rows_are_dropped_whole_and_the_others_stay():
    dropout = RowDropout(0.3)
    set_sample_keys(dropout, sample_keys(torch.arange(SAMPLES), 7, 0))
    x = torch.rand(SAMPLES, 5) + 1
    y = dropout(x)
    dropped = (y == 0).all(dim=1)
    assert torch.equal(y, torch.where(dropped.unsqueeze(1), 0, x))
    assert abs(dropped.double().mean() - 0.3) < 5 * (0.3 * 0.7 / SAMPLES) ** 0.5
    assert torch.equal(dropout.eval()(x), x)
