# SPDX-License-Identifier: Apache-2.0
import torch

from tests.balancing.small_problem import balancer

STEPS = [[1.0, 2.0, 4.0], [0.5, 1.9, 4.1], [0.4, 1.0, 4.0]]


def test_as_the_released_code_with_the_next_losses_for_those_after_the_update(
    one_process: torch.device,
):
    method = balancer("famo", minimum={"b": 0.5})
    minimum = torch.tensor([0.0, 0.5, 0.0]).double()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.025, weight_decay=1e-3)
    before = None
    for values in STEPS:
        above = torch.tensor(values).double() - minimum
        if before is not None:
            w.grad = torch.autograd.grad(w.softmax(0), w, before.log() - above.log())[0]
            optimizer.step()
        before = above
        losses = torch.tensor(values, requires_grad=True)
        z = w.detach().softmax(0)
        c = (z / above).sum()
        ((z * (losses - minimum).log()).sum() / c).backward()
        torch.testing.assert_close(method(losses) / losses, losses.grad)
