# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from deltarec.layers.batch_norm import GlobalBatchNorm, set_real_samples
from deltarec.layers.dropout import Dropout, sample_keys, set_sample_keys
from deltarec.layers.rows import occurrences, seeing


def test_selected_samples_keep_their_masks_and_what_was_seen_comes_back():
    dropout, norm = Dropout(0.5), GlobalBatchNorm(16)
    model = nn.Sequential(dropout, norm)
    keys, real = sample_keys(torch.arange(20), 0, 0), torch.arange(20) < 15
    set_sample_keys(model, keys)
    set_real_samples(model, real)
    x, rows = torch.ones(20, 16), torch.tensor([17, 3, 3, 9])
    whole = dropout(x)
    with seeing(model, rows):
        assert torch.equal(dropout(x[rows]), whole[rows])
        assert norm.real is not None and torch.equal(norm.real, real[rows])
        with seeing(model, torch.tensor([1])):
            assert torch.equal(dropout(x[:1]), whole[3:4])
    assert torch.equal(dropout(x), whole)
    assert torch.equal(norm.real, real)


def test_rows_of_one_sample_are_told_apart_by_their_occurrence():
    dropout = Dropout(0.5)
    set_sample_keys(dropout, sample_keys(torch.arange(2), 0, 0))
    x = torch.ones(5, 64)
    rows, places = occurrences(torch.tensor([3, 2]), 5)
    with seeing(dropout, rows, places):
        masks = dropout(x)
    assert len(masks.unique(dim=0)) == 5
    with seeing(dropout, rows[3:], places[3:]):
        assert torch.equal(dropout(x[:2]), masks[3:])


def test_before_anything_was_seen_nothing_is_selected():
    dropout, norm = Dropout(0.5), GlobalBatchNorm(4)
    with seeing(nn.Sequential(dropout, norm), torch.tensor([0])):
        assert dropout.keys is None and norm.real is None


def test_occurrences_count_within_each_list():
    rows, places = occurrences(torch.tensor([0, 2, 0, 3, 0]), 5)
    assert rows.tolist() == [1, 1, 3, 3, 3]
    assert places.tolist() == [0, 1, 0, 1, 2]
    assert [part.tolist() for part in occurrences(torch.tensor([0, 0]), 0)] == [[], []]
