# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.embeddings.collections import JaggedSequence
from deltarec.layers.batch_norm import set_real_samples
from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.models.din import DINEncoder
from tests.models.reference import assert_equal, leaf, linear, mlp

LENGTHS = torch.tensor([2, 0, 3, 1, 0])


def encoder(**options) -> DINEncoder:
    config = DINEncoder.Config(name="din", hidden=[6, 3], **options)
    return DINEncoder(config, 4, ["history"], has_target=True).double()


def attended(unit: Any, target: Tensor, items: Tensor, softmax: bool) -> Tensor:
    """Σ_i a(e_i, t) e_i with a = MLP([e; t; e − t; e ∘ t]) for one sample, or a's softmax."""
    weights = []
    for item in items:
        pair = torch.cat([item, target, item - target, item * target])
        weights.append(linear(unit.score, mlp(unit.layers, pair)))
    if softmax and weights:
        total = sum(w.exp() for w in weights)
        weights = [w.exp() / total for w in weights]
    start = torch.zeros(4, dtype=torch.float64)
    return sum((w * item for w, item in zip(weights, items, strict=True)), start)


@pytest.mark.parametrize("softmax", [False, True])
def test_weighs_each_item_by_its_target(softmax: bool):
    """Two sequences are empty; the last sample is as padding is, without items and of zeros."""
    model = encoder(softmax=softmax)
    items, target = leaf(int(LENGTHS.sum()), 4), leaf(5, 4)
    with torch.no_grad():
        target[4] = 0
    parts = items.split(LENGTHS.tolist())
    pairs = zip(target, parts, strict=True)
    wanted = torch.stack([attended(model.units[0], one, part, softmax) for one, part in pairs])
    [got] = model(target, [JaggedSequence(items, LENGTHS)])
    assert_equal(model, got, wanted, [items, target])


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_a_batch_without_items_gives_zeros_and_gradients(one_process: torch.device, norm: str):
    model = encoder(norm=norm, dropout=0.5)
    set_sample_keys(model, sample_keys(torch.arange(3), 0, 0))
    set_real_samples(model, torch.ones(3, dtype=torch.bool))
    nothing = JaggedSequence(leaf(0, 4), torch.zeros(3, dtype=torch.int64))
    [output] = model(leaf(3, 4), [nothing])
    assert torch.equal(output, torch.zeros(3, 4, dtype=torch.float64))
    output.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_masks_and_normalisation_are_of_items_and_belong_to_their_sample(
    one_process: torch.device,
):
    model = encoder(dropout=0.5)
    keys, items, target = sample_keys(torch.arange(5), 0, 0), leaf(6, 4), leaf(5, 4)
    set_sample_keys(model, keys)
    [whole] = model(target, [JaggedSequence(items, LENGTHS)])
    set_sample_keys(model, keys[2:3])
    [alone] = model(target[2:3], [JaggedSequence(items[2:5], LENGTHS[2:3])])
    torch.testing.assert_close(alone, whole[2:3])
    normalised = encoder(norm="batch")
    set_real_samples(normalised, torch.tensor([True] * 4 + [False]))
    normalised(target, [JaggedSequence(items, LENGTHS)])
    pairs = torch.cat([items, target[[0, 0, 2, 2, 2, 3]]], dim=1)
    differences = torch.cat([pairs, pairs[:, :4] - pairs[:, 4:], pairs[:, :4] * pairs[:, 4:]], 1)
    layers: Any = normalised.units[0].layers
    mean = layers[0](differences).mean(0)
    torch.testing.assert_close(layers[1].running_mean, 0.1 * mean)


def test_without_a_target_it_is_refused():
    with pytest.raises(
        ValueError, match=r"compares a sequence with its target; name one by features\.history\."
    ):
        DINEncoder(DINEncoder.Config(name="din", hidden=[4]), 4, ["history"], has_target=False)
