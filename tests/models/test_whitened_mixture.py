# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.models.whitened_mixture import WhitenedMixture
from tests.models.properties import randomise
from tests.models.reference import assert_equal, leaf


@pytest.mark.parametrize("training", [True, False])
def test_whitened_mixture(training: bool):
    config = WhitenedMixture.Config(name="whitened_mixture", dim=3, experts=4, dropout=0.0)
    model = WhitenedMixture(config, {"item": 6, "user": 4}).double().train(training)
    randomise(model)
    set_sample_keys(model, sample_keys(torch.arange(5), seed=0, epoch=0))
    inputs = {"item": leaf(5, 6), "user": leaf(5, 4)}
    wanted = []
    for table, vectors in inputs.items():
        mixture = model.mixtures[table]
        noise = mixture.noise(torch.empty(5, 4, dtype=torch.float64))  # pyright: ignore
        for x, epsilon in zip(vectors, noise, strict=True):
            spread = (mixture.spread @ x).exp().log1p() + 0.01  # pyright: ignore
            scores = mixture.gate @ x + (epsilon * spread if training else 0)  # pyright: ignore
            weights = scores.exp() / scores.exp().sum()
            experts = [w @ (x - b) for w, b in zip(mixture.weight, mixture.bias, strict=True)]  # pyright: ignore
            parts = [w * e for w, e in zip(weights, experts, strict=True)]
            wanted.append(torch.stack(parts).sum(0))
    got = torch.cat([model(table, vectors) for table, vectors in inputs.items()])
    assert_equal(model, got, torch.stack(wanted), list(inputs.values()))


def test_gates_begin_alike_and_noise_is_for_training():
    config = WhitenedMixture.Config(name="whitened_mixture", dim=3)
    model = WhitenedMixture(config, {"item": 6}).eval()
    mixture = model.mixtures["item"]
    x = torch.randn(5, 6)
    mean = torch.stack([x @ weight.T for weight in mixture.weight]).mean(0)  # pyright: ignore
    torch.testing.assert_close(model("item", x), mean)
    model.train()
    set_sample_keys(model, sample_keys(torch.arange(5), seed=0, epoch=0))
    first = model("item", x)
    assert not torch.allclose(first, mean) and torch.equal(first, model("item", x))
