# SPDX-License-Identifier: Apache-2.0
"""A batch seen as features and as text, made of random numbers, for losses of alignment."""

import torch
from torch import Tensor, nn

from deltarec.layers.dropout import set_sample_keys
from deltarec.models.roles import Features, Text, Tokens, Views, ViewShapes

ROWS, TOKENS, WIDTH, HIDDEN, WORDS = 6, 5, 4, 3, 11
SHAPES = ViewShapes(HIDDEN, WIDTH, {"user": 2, "item": 3})


class World:
    """What the views are made of: leaves with gradients.

    Samples 1 and 4 have the same text and the same item, 2 has no item; 3 is padding.
    """

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.user = torch.randn(ROWS, 2, requires_grad=True)
        self.item = torch.randn(ROWS, 3, requires_grad=True)
        self.weight = torch.randn(5, HIDDEN, requires_grad=True)
        self.embeddings = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
        self.vocabulary = torch.randn(WORDS, WIDTH)
        lengths = torch.tensor([5, 3, 4, 1, 3, 2])
        self.mask = torch.arange(TOKENS) < lengths.unsqueeze(1)
        self.ids = {
            "user": torch.arange(ROWS),
            "item": torch.tensor([5, 7, -1, 5, 7, 9]),
        }
        self.numbers = torch.randint(0, WORDS, (ROWS, TOKENS)).masked_fill(~self.mask, -1)
        self.numbers[:, 0] = -2
        self.hashes = torch.tensor([0, 1, 2, 3, 1, 5])
        self.real = torch.tensor([True, True, True, False, True, True])

    @property
    def leaves(self) -> list[Tensor]:
        return [self.user, self.item, self.weight, self.embeddings]

    def share(self, rows: slice) -> "World":
        """The world of a rank that has some of the samples."""
        mine = World()
        for name in ("user", "item", "embeddings"):
            setattr(mine, name, getattr(self, name)[rows].detach().requires_grad_())
        for name in ("mask", "numbers", "hashes", "real"):
            setattr(mine, name, getattr(self, name)[rows])
        mine.ids = {name: ids[rows] for name, ids in self.ids.items()}
        return mine

    def represent(self, vectors: dict[str, Tensor]) -> Tensor:
        return torch.cat([vectors["user"], vectors["item"]], dim=1) @ self.weight

    def read(self, hidden: Tensor, instead: Tensor) -> Tensor:
        """A state is its token and the mean of the text's."""
        x = torch.where(hidden.unsqueeze(2), instead, self.embeddings)
        m = self.mask.unsqueeze(2)
        return x + (x * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)

    def views(self) -> Views:
        vectors = {"user": self.user, "item": self.item}
        states = self.read(torch.zeros_like(self.mask), torch.zeros(WIDTH))
        m = self.mask.unsqueeze(2)
        pooled = (states * m).sum(1) / m.sum(1)
        features = Features(
            self.represent(vectors),
            vectors,
            self.ids,
            lambda hidden: self.represent(
                {n: torch.where(hidden[n].unsqueeze(1), 0, v) for n, v in vectors.items()}
            ),
        )
        tokens = Tokens(self.numbers, self.vocabulary, self.read)
        text = Text(states, self.mask, pooled, self.hashes, self.real, tokens)
        return Views(features, text, self.real)


def keyed(loss: nn.Module, rows: slice = slice(None)) -> nn.Module:
    """The loss, told of the samples."""
    set_sample_keys(loss, torch.arange(ROWS)[rows] * 1_000_003)
    return loss


def check_against(loss: nn.Module, world: World, wanted: Tensor) -> None:
    """Value and all gradients of `loss` on the world are those of `wanted`, to 1e-5."""
    inputs = [*world.leaves, *loss.parameters()]
    got = loss(world.views())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(wanted, inputs, allow_unused=True, retain_graph=True)
    ours = torch.autograd.grad(got, inputs, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        zero = torch.zeros(())
        mine, other = (zero if g is None else g for g in (mine, other))
        torch.testing.assert_close(
            mine.expand_as(other), other.expand_as(mine), rtol=1e-5, atol=1e-6
        )
    assert all(g is not None for g in ours[len(world.leaves) :]), "a parameter has no gradient"
