# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from deltarec.layers.lsq import LSQ


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_equations(bits: int):
    """Values and both gradients, element by element, also beyond both bounds."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = 0.05
    rows = (torch.randn(7, 5) * step * high).requires_grad_()
    upstream = torch.randn(7, 5)
    model = LSQ(bits, step)
    model(rows).backward(upstream)

    wanted, to_rows, to_step = torch.empty(7, 5), torch.empty(7, 5), 0.0
    for i in range(7):
        for j in range(5):
            s = rows[i, j].item() / step
            inside = low < s < high
            code = round(s) if inside else (low if s <= low else high)
            wanted[i, j] = step * code
            to_rows[i, j] = upstream[i, j] if inside else 0
            to_step += upstream[i, j].item() * (code - s if inside else code)
    torch.testing.assert_close(model(rows), wanted)
    assert rows.grad is not None and model.log_step.grad is not None
    torch.testing.assert_close(rows.grad, to_rows)
    assert model.log_step.item() == pytest.approx(math.log(step))
    assert model.log_step.grad.item() == pytest.approx(step * to_step, rel=1e-4)


def test_no_rows():
    model = LSQ(8, 0.1)
    rows = torch.empty(0, 4, requires_grad=True)
    model(rows).sum().backward()
    assert model.log_step.grad is not None and model.log_step.grad == 0
