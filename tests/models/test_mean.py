# SPDX-License-Identifier: Apache-2.0
import torch

from deltarec.embeddings.collections import JaggedSequence
from deltarec.models.mean import MeanEncoder
from tests.models.reference import assert_equal, leaf

LENGTHS = [2, 0, 3, 1, 0]


def test_is_the_mean_of_each_sequence():
    model = MeanEncoder(MeanEncoder.Config(name="mean"), 4, ["history"], has_target=False)
    items = leaf(sum(LENGTHS), 4)
    parts = items.split(LENGTHS)
    zeros = torch.zeros(4, dtype=torch.float64)
    wanted = torch.stack([sum(part, zeros) / max(len(part), 1) for part in parts])
    [got] = model(None, [JaggedSequence(items, torch.tensor(LENGTHS))])
    assert_equal(model, got, wanted, [items])


def test_empty_sequences_give_zeros():
    model = MeanEncoder(MeanEncoder.Config(name="mean"), 4, ["history"], has_target=False)
    nothing = JaggedSequence(torch.empty(0, 4), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(model(None, [nothing])[0], torch.zeros(3, 4))
