# SPDX-License-Identifier: Apache-2.0
"""TEM4CTR against the specification's steps, one sample after the other, and against padding."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deltarec.embeddings.collections import JaggedSequence
from deltarec.layers.batch_norm import set_real_samples
from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.models.tem4ctr import TEM4CTREncoder
from tests.models.reference import assert_equal, leaf, linear, mlp

DIM = 4
LENGTHS = [2, 0, 3, 1]
"""Clicks of each sample."""
AROUND = {
    "shown": [[[3], [0]], [], [[1], [2], [0]], [[4]]],
    "liked": [[[0], [0]], [], [[5], [0], [1]], [[0]]],
}
"""How many are aligned with each click of each sample, of two types."""
NAMES = ["clicks", *AROUND]
ABLATIONS = [
    *[{"projection": name} for name in ("parallel", "orthogonal", "full", "none")],
    {"alignment": False},
]


class Inputs(NamedTuple):
    target: Tensor
    sequences: list[JaggedSequence]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.target, *(sequence.values for sequence in self.sequences)]


def inputs(names: list[str] = NAMES) -> Inputs:
    sequences = [JaggedSequence(leaf(sum(LENGTHS), DIM), torch.tensor(LENGTHS))]
    for name in names[1:]:
        inner = [count for sample in AROUND[name] for [count] in sample]
        lengths = torch.tensor([sum(c for [c] in sample) for sample in AROUND[name]])
        sequences.append(JaggedSequence(leaf(sum(inner), DIM), lengths, torch.tensor(inner)))
    return Inputs(leaf(len(LENGTHS), DIM), sequences)


def encoder(names: list[str] = NAMES, **options: Any) -> TEM4CTREncoder:
    config = TEM4CTREncoder.Config(name="tem4ctr", **{"hidden": [6, 3], **options})
    return TEM4CTREncoder(config, DIM, names, has_target=True).double()


def attended(unit: Any, query: Tensor, keys: list[Tensor]) -> Tensor:
    """Σ_j softmax_j a(q, k_j) k_j of one query."""
    if not keys:
        return torch.zeros(DIM, dtype=torch.float64)
    pairs = [torch.cat([query, key, query - key, query * key]) for key in keys]
    scores = torch.cat([linear(unit.score, mlp(unit.layers, pair)) for pair in pairs])
    return (scores.softmax(0).unsqueeze(1) * torch.stack(keys)).sum(0)


def slow(model: TEM4CTREncoder, given: Inputs) -> list[Tensor]:
    """Steps 1 to 4 of the specification for each sample and type."""
    clicks = given.sequences[0].values.split(LENGTHS)
    found: list[list[Tensor]] = []
    for b, target in enumerate(given.target):
        own = list(clicks[b])
        enhanced, vectors = list(own), []
        for t, sequence in enumerate(given.sequences[1:]):
            assert sequence.inner is not None
            starts = [sum(LENGTHS[:b]) + i for i in range(LENGTHS[b])]
            lists = sequence.values.split(sequence.inner.tolist())
            if not model.alignment:
                everything = [item for start in starts for item in lists[start]]
                vectors.append(attended(model.exposure[t], target, everything))
                continue
            around = []
            for i, (click, start) in enumerate(zip(own, starts, strict=True)):
                u = attended(model.search[t], click, list(lists[start]))
                along = (u @ click) / (click @ click + 1e-12) * click
                gained = {"parallel": along, "orthogonal": u - along, "full": u, "none": 0 * u}
                enhanced[i] = enhanced[i] + gained[model.projection]
                around.append(u)
            vectors.append(attended(model.exposure[t], target, around))
        found.append([attended(model.click, target, enhanced), *vectors])
    return [torch.stack(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("names", [NAMES, NAMES[:2], NAMES[:1]], ids=len)
@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_equals_the_loop_over_samples(options: dict[str, Any], names: list[str]):
    model, given = encoder(names, **options), inputs(names)
    got, wanted = model(*given), slow(model, given)
    assert len(got) == len(names)
    assert_equal(model, torch.cat(got, 1), torch.cat(wanted, 1), given.leaves)


def test_float32_is_within_1e_5():
    torch.manual_seed(0)
    model, given = encoder(hidden=[80, 40]), inputs()
    exact = torch.cat(model(*given), 1)
    upstream = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, [*given.leaves, *model.parameters()], upstream)
    single = encoder(hidden=[80, 40]).float()
    single.load_state_dict(model.state_dict())
    leaves = [x.detach().float().requires_grad_() for x in given.leaves]
    lists = zip(leaves[1:], given.sequences, strict=True)
    got = torch.cat(single(leaves[0], [JaggedSequence(x, s.lengths, s.inner) for x, s in lists]), 1)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(got, [*leaves, *single.parameters()], upstream.float())
    for mine, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def padded(model: TEM4CTREncoder, given: Inputs) -> list[Tensor]:
    """The released code's way: `[B, T, M, D]` with masks of -2^32 + 1 before each softmax."""
    size, longest = len(LENGTHS), max(LENGTHS)
    clicks = torch.zeros(size, longest, DIM, dtype=torch.float64)
    present = torch.zeros(size, longest, dtype=torch.bool)
    for b, part in enumerate(given.sequences[0].values.split(LENGTHS)):
        clicks[b, : len(part)], present[b, : len(part)] = part, True
    enhanced, others = clicks, []
    for t, sequence in enumerate(given.sequences[1:]):
        assert sequence.inner is not None
        slots = torch.zeros(size, longest, 10, DIM, dtype=torch.float64)
        there = torch.zeros(size, longest, 10, dtype=torch.bool)
        lists = iter(sequence.values.split(sequence.inner.tolist()))
        for b, i in present.nonzero().tolist():
            part = next(lists)
            slots[b, i, 10 - len(part) :], there[b, i, 10 - len(part) :] = part, True
        u = dense_attention(model.search[t], clicks, slots, there)
        dot, norm = (u * clicks).sum(-1, keepdim=True), (clicks**2).sum(-1, keepdim=True)
        enhanced = enhanced + dot / (norm + 1e-12) * clicks
        others.append(dense_attention(model.exposure[t], given.target, u, present))
    return [dense_attention(model.click, given.target, enhanced, present), *others]


def dense_attention(unit: Any, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Query `[..., D]` and keys `[..., M, D]` with their mask `[..., M]` to `[..., D]`."""
    q = query.unsqueeze(-2).expand_as(keys)
    scores = unit.score(unit.layers(torch.cat([q, keys, q - keys, q * keys], -1))).squeeze(-1)
    weights = torch.where(mask, scores, -(2.0**32) + 1).softmax(-1)
    return (weights.unsqueeze(-1) * keys).sum(-2)


def test_jagged_equals_padded():
    """Samples without clicks and clicks without exposures among them: masked out altogether."""
    model, given = encoder(), inputs()
    assert_equal(
        model, torch.cat(model(*given), 1), torch.cat(padded(model, given), 1), given.leaves
    )


@pytest.mark.parametrize("options", ABLATIONS, ids=str)
def test_a_batch_without_anything_gives_zeros_and_gradients(
    one_process: torch.device, options: dict[str, Any]
):
    model = encoder(norm="batch", dropout=0.5, **options)
    set_sample_keys(model, sample_keys(torch.arange(3), 0, 0))
    set_real_samples(model, torch.ones(3, dtype=torch.bool))
    none, zeros = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    nothing = [JaggedSequence(leaf(0, DIM), zeros, none) for _ in NAMES]
    found = model(leaf(3, DIM), nothing)
    assert all(torch.equal(x, torch.zeros(3, DIM, dtype=torch.float64)) for x in found)
    torch.cat(found).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_dropout_belongs_to_the_sample():
    model, given = encoder(dropout=0.5), inputs()
    keys = sample_keys(torch.arange(4), 0, 0)
    set_sample_keys(model, keys)
    whole = model(*given)
    set_sample_keys(model, keys[2:3])
    alone = []
    for sequence in given.sequences:
        first = int(sequence.lengths[:2].sum())
        part = sequence.values[first : first + int(sequence.lengths[2])]
        inner = None if sequence.inner is None else sequence.inner[2:5]
        alone.append(JaggedSequence(part, sequence.lengths[2:3], inner))
    for mine, theirs in zip(model(given.target[2:3], alone), whole, strict=True):
        torch.testing.assert_close(mine, theirs[2:3])


def test_what_lies_across_a_click_cannot_enter():
    """The projection alone: an orthogonal exposure leaves the clicks' interest as it is."""
    clicks, target = torch.eye(4)[:2], torch.randn(1, 4)
    around = [2 * torch.eye(4)[[2, 3]], torch.eye(4)[[0, 1]]]
    lists = torch.tensor([1, 1])
    model = encoder(NAMES[:2]).float()
    plain, _ = encoder_outputs(model, target, clicks, torch.zeros(2, 4), lists)
    across, _ = encoder_outputs(model, target, clicks, around[0], lists)
    along, _ = encoder_outputs(model, target, clicks, around[1], lists)
    torch.testing.assert_close(across, plain)
    assert (along - plain).abs().max() > 0.1


def encoder_outputs(
    model: TEM4CTREncoder, target: Tensor, clicks: Tensor, around: Tensor, inner: Tensor
) -> list[Tensor]:
    """Of one sample."""
    first = JaggedSequence(clicks, torch.tensor([len(clicks)]))
    return model(target, [first, JaggedSequence(around, torch.tensor([len(around)]), inner)])


def test_without_a_target_it_is_refused():
    with pytest.raises(ValueError, match=r"target; name one by features\.clicks\.target"):
        config = TEM4CTREncoder.Config(name="tem4ctr")
        TEM4CTREncoder(config, DIM, NAMES, has_target=False)
