# SPDX-License-Identifier: Apache-2.0
"""Against torch.nn.BatchNorm1d, in one process and over ranks with unequal shares."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltarec.layers.batch_norm import GlobalBatchNorm, set_real_samples
from tests.conftest import run_ranks

DIM = 5
SHARES = {2: [6, 3], 3: [4, 5, 0]}
"""Real samples of each rank, nine in all; every rank is padded to six rows."""


def run(norm: nn.Module, steps: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Forward and backward for each (x, gradient of y); the last step's tensors, and the state."""
    x = y = torch.empty(0)
    for given, upstream in steps:
        norm.zero_grad()
        x = given.clone().requires_grad_()
        y = norm(x)
        y.backward(upstream)
    assert x.grad is not None
    state = {n: v for n, v in norm.state_dict().items() if n != "num_batches_tracked"}
    gradients = {f"{name}.grad": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "x.grad": x.grad, **state, **gradients}  # pyright: ignore


def steps(num_steps: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, 2, 9, DIM)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 2
    return [(x, upstream) for x, upstream in drawn]


def padded(rows: Tensor, size: int, fill: float) -> Tensor:
    return torch.cat([rows, rows.new_full((size - len(rows), DIM), fill)])


def reference() -> dict[str, Tensor]:
    return run(nn.BatchNorm1d(DIM).double(), steps())


@pytest.mark.parametrize("padding", [0, 4])
def test_is_torchs_batch_norm(one_process: torch.device, padding: int):
    norm = GlobalBatchNorm(DIM).double()
    set_real_samples(norm, torch.arange(9 + padding) < 9)
    size = 9 + padding
    mine = run(norm, [(padded(x, size, 50.0), padded(u, size, 0)) for x, u in steps()])
    for name, wanted in reference().items():
        torch.testing.assert_close(mine[name][: len(wanted)], wanted, rtol=1e-9, atol=1e-9)
    assert mine["x.grad"][9:].abs().sum() == 0, "padding has a gradient"
    torchs = nn.BatchNorm1d(DIM).double()
    torchs.load_state_dict(norm.state_dict(), strict=False)
    x = steps()[0][0]
    torch.testing.assert_close(norm.eval()(x), torchs.eval()(x), rtol=1e-9, atol=1e-9)


def on_rank(share: list[int]) -> dict[str, Tensor]:
    norm = GlobalBatchNorm(DIM).double()
    size, rank = 6, dist.get_rank()
    count = share[rank]
    rows = slice(sum(share[:rank]), sum(share[: rank + 1]))
    set_real_samples(norm, torch.arange(size) < count)
    mine = run(norm, [(padded(x[rows], size, 50.0), padded(u[rows], size, 0)) for x, u in steps()])
    return {n: v[:count] if n in ("y", "x.grad") else v for n, v in mine.items()}


@pytest.mark.parametrize("ranks", SHARES)
def test_is_the_same_over_ranks_with_unequal_shares(ranks: int):
    """Also where one rank has nothing but padding. Parameter gradients are sums over ranks."""
    results = run_ranks(ranks, on_rank, SHARES[ranks])
    for name, wanted in reference().items():
        parts = [result[name] for result in results]
        if name in ("y", "x.grad"):
            parts = [torch.cat(parts)]
        elif name.endswith(".grad"):
            parts = [torch.stack(parts).sum(0)]
        for part in parts:
            torch.testing.assert_close(part, wanted, rtol=1e-9, atol=1e-9, msg=name)


def test_a_mean_far_from_zero_does_not_drown_the_deviation(one_process: torch.device):
    x = torch.randn(1000, DIM, generator=torch.Generator().manual_seed(0)) + 1000
    exact = nn.BatchNorm1d(DIM).double()(x.double())
    norm = GlobalBatchNorm(DIM)
    set_real_samples(norm, torch.ones(1000, dtype=torch.bool))
    torchs = (nn.BatchNorm1d(DIM)(x) - exact).abs().max()
    assert (norm(x) - exact).abs().max() <= max(2 * torchs, 1e-5)


def test_under_autocast_statistics_stay_in_full_precision(one_process: torch.device):
    x = (torch.randn(1000, DIM, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    norm, torchs = GlobalBatchNorm(DIM), nn.BatchNorm1d(DIM)
    set_real_samples(norm, torch.ones(1000, dtype=torch.bool))
    torch.testing.assert_close(norm(x), torchs(x.float()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torchs.running_var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 4])
def test_a_batch_without_samples_changes_no_statistics(one_process: torch.device, rows: int):
    norm = GlobalBatchNorm(DIM)
    set_real_samples(norm, torch.zeros(rows, dtype=torch.bool))
    y = norm(torch.randn(rows, DIM))
    assert y.isfinite().all()
    y.sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.isfinite().all()
    assert torch.equal(norm.running_mean, torch.zeros(DIM))
    assert torch.equal(norm.running_var, torch.ones(DIM))
