# SPDX-License-Identifier: Apache-2.0
"""Losses of alignment against loops over their equations; sequences of samples by hand."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deltarec.config import validate
from deltarec.layers.dropout import uniform
from deltarec.models import ALIGNMENT_LOSSES
from tests.conftest import run_ranks
from tests.models.views import ROWS, SHAPES, TOKENS, World, check_against, keyed

pytestmark = pytest.mark.usefixtures("one_process")


def loss_of(name: str, **options: Any) -> Any:
    kind = ALIGNMENT_LOSSES[name]
    torch.manual_seed(2)
    return keyed(kind(validate(kind.Config, {"name": name, **options}, "test"), SHAPES))


@pytest.mark.parametrize("subspaces", [1, 3])
def test_contrastive(subspaces: int):
    world = World()
    loss = loss_of("contrastive", dim=4, subspaces=subspaces, temperature=0.3)
    views = world.views()

    def parts(layer: Any, x: Tensor) -> list[Tensor]:
        return [F.normalize(part, dim=0) for part in layer(x).split(4)]

    x = [parts(loss.features, views.features.representation[i]) for i in range(ROWS)]
    t = [parts(loss.text, views.text.pooled[i]) for i in range(ROWS)]

    def score(i: int, j: int) -> Tensor:
        return sum(torch.stack([a @ b for b in t[j]]).max() for a in x[i]) / 0.3  # pyright: ignore

    total, real = torch.zeros(()), [0, 1, 2, 4, 5]
    for i in real:
        others = [j for j in real if j == i or world.hashes[j] != world.hashes[i]]
        for scores in ([score(i, j) for j in others], [score(j, i) for j in others]):
            total = total + torch.stack(scores).logsumexp(0) - score(i, i)
    check_against(loss, world, total / 2 / len(real))


def test_masked_feature():
    world, loss = World(), loss_of("masked_feature", rate=0.6)
    vectors = {"user": world.user, "item": world.item}
    ids = torch.stack([world.ids["user"], world.ids["item"]], dim=1)
    draws = uniform(loss.draw.bits(ids)) < 0.6
    states = world.views().text.states
    values = []
    for i in [0, 1, 2, 4, 5]:
        hidden = {n: bool(draws[i, f]) and bool(ids[i, f] >= 0) for f, n in enumerate(vectors)}
        seen = {n: torch.zeros_like(v[i]) if hidden[n] else v[i] for n, v in vectors.items()}
        x = torch.cat([seen["user"], seen["item"]]) @ world.weight
        tokens = states[i, world.mask[i]]
        a = (tokens @ loss.query(x) / tokens.shape[1] ** 0.5).softmax(0) @ tokens
        for f, name in enumerate(vectors):
            if hidden[name]:
                y = loss.predict[name](torch.cat([x, a]))
                others = [
                    j
                    for j in [0, 1, 2, 4, 5]
                    if j == i or (ids[j, f] >= 0 and ids[j, f] != ids[i, f])
                ]
                scores = torch.stack([y @ vectors[name][j] for j in others])
                values.append(scores.logsumexp(0) - scores[others.index(i)])
    assert 3 <= len(values) < 9
    check_against(loss, world, torch.stack(values).mean())


def test_masked_token():
    world, loss = World(), loss_of("masked_token", rate=0.5)
    hidden = (uniform(loss.draw.bits(world.numbers)) < 0.5) & (world.numbers >= 0)
    hidden[3] = False
    states = world.read(hidden, loss.mask)
    x = world.views().features.representation
    values = []
    for i in range(ROWS):
        for t in range(TOKENS):
            if hidden[i, t]:
                z = F.gelu(loss.predict(torch.cat([states[i, t], x[i]])))
                logits = world.vocabulary @ z
                values.append(logits.logsumexp(0) - logits[world.numbers[i, t]])
    assert len(values) >= 3
    check_against(loss, world, torch.stack(values).mean())


def gradients(world: World, loss: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of what a rank has of its own, and of what is the same on all ranks."""
    loss(world.views()).backward()
    own = {name: getattr(world, name).grad for name in ("user", "item", "embeddings")}
    shared = {name: p.grad for name, p in loss.named_parameters()} | {"weight": world.weight.grad}
    assert all(gradient is not None for gradient in [*own.values(), *shared.values()])
    return own, shared


def of_a_rank(names: list[str]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    rows = slice(dist.get_rank() * ROWS // 2, (dist.get_rank() + 1) * ROWS // 2)
    return {
        name: gradients(World().share(rows), keyed(loss_of(name, **OPTIONS[name]), rows))
        for name in names
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "contrastive": {"dim": 4, "subspaces": 2, "temperature": 0.3},
    "masked_feature": {"rate": 0.6},
    "masked_token": {"rate": 0.5},
}


def test_gradients_on_two_ranks_are_those_of_the_whole_batch():
    """Equal, and not only in proportion: an optimiser such as SGD takes the same step.

    Gradients of tables and of replicated parameters are the ranks' divided by their number, as
    TorchRec and DistributedDataParallel do. One rank has padding, so counts are unequal; equal
    texts and equal items are on two ranks.
    """
    ranks = run_ranks(2, of_a_rank, list(ALIGNMENT_LOSSES))
    for name in ALIGNMENT_LOSSES:
        own, shared = gradients(World(), loss_of(name, **OPTIONS[name]))
        got = {key: torch.cat([found[name][0][key] for found in ranks]) / 2 for key in own}
        got |= {key: sum(found[name][1][key] for found in ranks) / 2 for key in shared}
        for key, wanted in {**own, **shared}.items():
            torch.testing.assert_close(got[key], wanted, rtol=1e-5, atol=1e-6, msg=f"{name}: {key}")
            assert wanted.any(), (name, key)


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
def test_a_batch_of_padding_gives_zeros(name: str):
    """A rank may have nothing but padding; every parameter still has a gradient."""
    world, loss = World(), loss_of(name)
    world.real = torch.zeros(ROWS, dtype=torch.bool)
    share = loss(world.views())
    share.backward()
    assert share == 0
    for parameter in loss.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
