# SPDX-License-Identifier: Apache-2.0
"""Schedules at given steps; one step over dense and fused optimisers, against plain PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec.optim.fused import EmptyFusedOptimizer

from deltarec.config import validate
from deltarec.optimizers import DENSE_OPTIMIZERS, OptimizerConfig, StepOptimizer
from deltarec.text.language_model import LanguageModel

TORCHS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


class Dense(nn.Linear):
    """A model without tables, as far as an optimiser sees."""

    fused_optimizer = EmptyFusedOptimizer()

    def __init__(self) -> None:
        super().__init__(3, 2)
        with torch.no_grad():
            self.weight.copy_(torch.arange(6.0).view(2, 3) / 5 - 0.5)
            self.bias.copy_(torch.tensor([0.3, -0.2]))


def optimizer_of(model: nn.Module, num_steps: int = 100, **options: Any) -> StepOptimizer:
    config = validate(OptimizerConfig, options, "test")
    return StepOptimizer(config, model, num_steps)  # pyright: ignore[reportArgumentType]


def batches(count: int) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(0)))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - 1).square().mean()


def train(model: nn.Module, optimizer: StepOptimizer, data: Sequence[Tensor]) -> None:
    for batch in data:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def assert_same_parameters(first: nn.Module, second: nn.Module) -> None:
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "schedule,factors",
    [
        ({"name": "constant"}, {0: 1, 50: 1, 99: 1, 200: 1}),
        ({"name": "constant", "warmup_steps": 4}, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
        ({"name": "linear"}, {0: 1, 25: 0.75, 99: 0.01, 100: 0, 150: 0}),
        (
            {"name": "linear", "final": 0.2, "warmup_steps": 20},
            {0: 0.05, 19: 1, 20: 1, 60: 0.6, 100: 0.2, 101: 0.2},
        ),
        ({"name": "cosine"}, {0: 1, 50: 0.5, 25: (1 + 0.5**0.5) / 2, 100: 0, 120: 0}),
        (
            {"name": "cosine", "final": 0.1, "warmup_steps": 50},
            {24: 0.5, 50: 1, 75: 0.55, 100: 0.1},
        ),
        ({"name": "linear", "warmup_steps": 200}, {0: 0.005, 99: 0.5, 100: 0.505}),
    ],
)
def test_schedules(schedule: dict[str, Any], factors: dict[int, float]):
    config = validate(OptimizerConfig, {"schedule": schedule}, "test")
    found = {step: config.schedule.factor(step, num_steps=100) for step in factors}
    assert found == pytest.approx(factors)


def test_every_batch_has_the_schedules_rate():
    model = Dense()
    optimizer = optimizer_of(
        model, 6, dense={"name": "sgd", "lr": 0.1}, schedule={"name": "linear", "warmup_steps": 2}
    )
    rates = []
    for batch in batches(6):
        before = model.weight.detach().clone()
        train(model, optimizer, [batch])
        assert model.weight.grad is not None
        rates.append(float(((before - model.weight) / model.weight.grad).mean()))
        assert optimizer.rates() == [pytest.approx(rates[-1], rel=1e-3)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025], rel=1e-3)


@pytest.mark.parametrize("name", DENSE_OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_dense_optimisers_are_torchs(name: str, decay: float):
    mine, other = Dense(), Dense()
    options = {"name": name, "lr": 0.1, "weight_decay": decay}
    train(mine, optimizer_of(mine, dense=options), batches(5))
    torchs = TORCHS[name](other.parameters(), lr=0.1, weight_decay=decay)
    for batch in batches(5):
        torchs.zero_grad()
        loss(other, batch).backward()
        torchs.step()
    assert_same_parameters(mine, other)


def test_gradients_are_clipped_together():
    model = Dense()
    optimizer = optimizer_of(model, dense={"name": "sgd", "lr": 1.0}, clip_norm=0.01)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    batch = batches(1)[0]
    gradients = torch.autograd.grad(loss(model, batch), list(model.parameters()))
    exact = nn.utils.parameters_to_vector(gradients)
    train(model, optimizer, [batch])
    change = before - nn.utils.parameters_to_vector(model.parameters())
    assert exact.norm() > 0.01
    torch.testing.assert_close(change, exact * (0.01 / exact.norm()), rtol=1e-3, atol=1e-6)
    loose, free = Dense(), Dense()
    train(loose, optimizer_of(loose, dense={"name": "sgd", "lr": 1.0}, clip_norm=1e3), [batch])
    train(free, optimizer_of(free, dense={"name": "sgd", "lr": 1.0}), [batch])
    assert_same_parameters(loose, free)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_batches_make_one_step_on_their_mean(clip: float | None):
    """Clipping acts on the mean; a last, incomplete accumulation is a step too."""
    options: dict[str, Any] = {"dense": {"name": "sgd", "lr": 0.5}, "clip_norm": clip}
    accumulated, whole = Dense(), Dense()
    data = batches(8)
    train(accumulated, optimizer_of(accumulated, 8, **options, accumulate=3), data)
    groups = [torch.cat(data[i : i + 3]) for i in (0, 3, 6)]
    train(whole, optimizer_of(whole, 3, **options), groups)
    assert_same_parameters(accumulated, whole)


def test_between_two_steps_of_an_accumulation_nothing_moves():
    model, still = Dense(), Dense()
    optimizer = optimizer_of(model, dense={"name": "adam", "lr": 0.5}, accumulate=3)
    train(model, optimizer, batches(2))
    assert_same_parameters(model, still)
    train(model, optimizer, batches(1))
    assert (model.weight - still.weight).abs().min() > 0.1


class Adapted(Dense):
    """With a language model beside it, as far as an optimiser sees."""

    class Language(LanguageModel):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.up, self.constant = nn.Linear(3, 2), nn.Parameter(torch.ones(2))
            self.constant.requires_grad_(False)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.language_model = self.Language()

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.language_model.up(input)


def test_a_language_model_has_its_own_rate_and_period():
    """One step in three batches by the mean of their gradients, and one at the job's end."""
    data, model, other = batches(4), Adapted(), Adapted()
    own = {"dense": {"name": "sgd", "lr": 0.1}, "every": 3}
    optimizer = optimizer_of(model, 4, dense={"name": "sgd", "lr": 0.5}, language_model=own)
    up, gradients = other.language_model.up, []
    for number, batch in enumerate(data):
        whole = [other.weight, other.bias, up.weight, up.bias]
        found = torch.autograd.grad(loss(other, batch), whole)
        gradients.append(found[2:])
        with torch.no_grad():
            other.weight -= 0.5 * found[0]
            other.bias -= 0.5 * found[1]
            if number in (2, 3):
                up.weight -= 0.1 * torch.stack([g[0] for g in gradients]).mean(0)
                up.bias -= 0.1 * torch.stack([g[1] for g in gradients]).mean(0)
                gradients = []
        train(model, optimizer, [batch])
        torch.testing.assert_close(model.weight, other.weight)
        torch.testing.assert_close(model.language_model.up.weight, up.weight)
        if number < 2:
            names = optimizer.pending_gradients().keys()
            assert names == {"language_model.up.weight", "language_model.up.bias"}
    assert torch.equal(model.language_model.constant, torch.ones(2))


def test_set_batches_continues_the_schedule_the_accumulation_and_the_kernels():
    class WithKernel(Dense):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = SplitTableBatchedEmbeddingBagsCodegen(
                [(10, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
                optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            )

    model = WithKernel()
    optimizer = optimizer_of(model, 100, schedule={"name": "linear"}, accumulate=2)
    optimizer.set_batches(50)
    assert optimizer.batches == 50
    assert int(model.kernel.iter) == 50  # pyright: ignore
    optimizer.zero_grad()
    assert optimizer.rates()[-1] == pytest.approx(1e-3 / 2)


def tensors(model: nn.Module, optimizer: StepOptimizer) -> dict[str, Any]:
    state = optimizer.combined.state_dict()["state"]
    return {"model": model.state_dict(), "optimizer": state}


@pytest.mark.parametrize(
    "options", [{"name": name} for name in DENSE_OPTIMIZERS] + [{"name": "sgd", "momentum": 0.9}]
)
def test_a_loaded_optimiser_goes_on_like_the_saved_one(
    one_process: torch.device, tmp_path: Path, options: dict[str, Any]
):
    dense = {**options, "lr": 0.1, "weight_decay": 0.01}
    data = batches(6)
    whole, saved, loaded = Dense(), Dense(), Dense()
    train(whole, optimizer_of(whole, dense=dense), data)
    first = optimizer_of(saved, dense=dense)
    train(saved, first, data[:3])
    dcp.save(tensors(saved, first), checkpoint_id=tmp_path)
    second = optimizer_of(loaded, dense=dense)
    second.init_state()
    found = tensors(loaded, second)
    dcp.load(found, checkpoint_id=tmp_path)
    loaded.load_state_dict(found["model"])
    second.set_batches(3)
    train(loaded, second, data[3:])
    for mine, other in zip(loaded.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
