# SPDX-License-Identifier: Apache-2.0
"""Against torch.nn.BatchNorm1d for each scenario, in one process and over ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltarec.layers.batch_norm import set_real_samples
from deltarec.layers.scenario_norm import ScenarioNorm
from tests.conftest import run_ranks
from tests.layers.test_batch_norm import DIM, padded

SAMPLES = 11
SCENARIO = torch.tensor([0, 2, 0, 0, 2, 2, 0, 3, 3, 2, 0])
"""Scenario 1 has no samples."""
SHARES = {2: [8, 3], 3: [4, 7, 0]}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, SAMPLES, DIM, generator=generator, dtype=torch.float64)
    return x * 3 + 2, upstream


def norm(shared: bool) -> ScenarioNorm:
    torch.manual_seed(1)
    model = ScenarioNorm(DIM, 4, shared).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def run(model: ScenarioNorm, x: Tensor, scenario: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x, scenario)
    y.backward(upstream)
    assert x.grad is not None
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return {"y": y.detach(), "x.grad": x.grad, **gradients, **buffers}  # pyright: ignore


def reference(shared: bool) -> dict[str, Tensor]:
    """One BatchNorm1d for each scenario, without affine part; that by hand."""
    model = norm(shared)
    x, upstream = data()
    x.requires_grad_()
    rows: list[Tensor] = [torch.empty(0)] * SAMPLES
    for s in range(4):
        mine = (s == SCENARIO).nonzero().flatten()
        if len(mine) == 0:
            continue
        normalised = nn.BatchNorm1d(DIM, affine=False).double()(x[mine])
        weight, bias = model.weight[s], model.bias[s]
        if model.shared_weight is not None and model.shared_bias is not None:
            weight, bias = weight * model.shared_weight, bias + model.shared_bias
        for i, row in zip(mine, normalised * weight + bias, strict=True):
            rows[i] = row
        values = x[mine].detach()
        step = values.mean(0)
        model.running_mean[s] = 0.1 * step
        model.running_var[s] = 0.9 + 0.1 * (values.var(0, correction=0) + 0.9 * step.square())
    y = torch.stack(rows)
    y.backward(upstream)
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "x.grad": x.grad, **gradients, **dict(model.named_buffers())}  # pyright: ignore


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_is_torchs_batch_norm_in_each_scenario(
    one_process: torch.device, shared: bool, padding: int
):
    model = norm(shared)
    size = SAMPLES + padding
    set_real_samples(model, torch.arange(size) < SAMPLES)
    x, upstream = data()
    scenario = torch.cat([SCENARIO, torch.zeros(padding, dtype=torch.int64)])
    got = run(model, padded(x, size, 50.0), scenario, padded(upstream, size, 0))
    for name, wanted in reference(shared).items():
        torch.testing.assert_close(got[name][: len(wanted)], wanted, rtol=1e-9, atol=1e-9, msg=name)
    assert not got["x.grad"][SAMPLES:].any(), "padding has a gradient"


def on_rank(share: list[int]) -> dict[str, Tensor]:
    rank = dist.get_rank()
    rows = slice(sum(share[:rank]), sum(share[: rank + 1]))
    model = norm(shared=True)
    set_real_samples(model, torch.arange(8) < share[rank])
    x, upstream = data()
    scenario = torch.cat([SCENARIO[rows], torch.zeros(8 - share[rank], dtype=torch.int64)])
    got = run(model, padded(x[rows], 8, 50.0), scenario, padded(upstream[rows], 8, 0))
    return {n: v[: share[rank]] if n in ("y", "x.grad") else v for n, v in got.items()}


@pytest.mark.parametrize("ranks", SHARES)
def test_is_the_same_over_ranks_with_unequal_shares(ranks: int):
    results = run_ranks(ranks, on_rank, SHARES[ranks])
    for name, wanted in reference(shared=True).items():
        parts = [result[name] for result in results]
        if name in ("y", "x.grad"):
            parts = [torch.cat(parts)]
        elif name.endswith(".grad"):
            parts = [torch.stack(parts).sum(0)]
        for part in parts:
            torch.testing.assert_close(part, wanted, rtol=1e-9, atol=1e-9, msg=name)


def test_in_evaluation_a_samples_output_is_its_own(one_process: torch.device):
    model = norm(shared=False)
    set_real_samples(model, torch.ones(SAMPLES, dtype=torch.bool))
    x, _ = data()
    model(x, SCENARIO)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    together = model(x, SCENARIO)
    alone = torch.cat([model(x[i : i + 1], SCENARIO[i : i + 1]) for i in range(SAMPLES)])
    torch.testing.assert_close(together, alone)
    s = SCENARIO[4]
    deviation = (model.running_var[s] + model.eps).sqrt()
    wanted = (x[4] - model.running_mean[s]) / deviation * model.weight[s] + model.bias[s]
    torch.testing.assert_close(together[4], wanted)
    torch.testing.assert_close(model.state_dict(), before)


def test_one_sample_a_batch_leaves_the_variance_over_batches(one_process: torch.device):
    generator = torch.Generator().manual_seed(0)
    model = ScenarioNorm(200, 2)
    set_real_samples(model, torch.tensor([True]))
    found = []
    for x in torch.randn(300, 1, 200, generator=generator) * 3 + 100:
        model(x, torch.tensor([1]))
        found.append(model.running_var[1].mean())
    assert torch.equal(model.running_var[0], torch.ones(200)), "an absent scenario learns nothing"
    # An average that forgets by 0.1 a step has seen 19 samples: it finds 18/19 of the variance.
    torch.testing.assert_close(
        torch.stack(found[200:]).mean(), torch.tensor(9 * 18 / 19), rtol=0.03, atol=0
    )


def test_bf16_is_normalised_in_full_precision(one_process: torch.device):
    model = ScenarioNorm(DIM, 4)
    set_real_samples(model, torch.ones(SAMPLES, dtype=torch.bool))
    x = data()[0].bfloat16()
    torch.testing.assert_close(model(x, SCENARIO), model(x.float(), SCENARIO), rtol=0, atol=0)
