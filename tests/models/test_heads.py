# SPDX-License-Identifier: Apache-2.0
"""What all task heads share, whatever they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deltarec.config import validate
from deltarec.models import TASK_HEADS
from deltarec.models.roles import TaskHeads
from tests.models.reference import CHAINED, chained_labels, leaf, means

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in TASK_HEADS},
    "ple of two levels": {"name": "ple", "levels": 2},
    "adatt of two levels": {"name": "adatt", "levels": 2, "shared_experts": 1},
    "dbmtl with experts": {"name": "dbmtl", "experts": 2},
    "escm2 dr": {"name": "escm2", "estimator": "dr"},
}


def heads(variant: str) -> TaskHeads:
    torch.manual_seed(0)
    member = TASK_HEADS[VARIANTS[variant]["name"]]
    config = validate(member.Config, {"hidden": [6, 3], **VARIANTS[variant]}, variant)
    return member(config, 4, CHAINED).double()


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_the_batch_permutes_the_outputs_and_keeps_the_losses(variant: str):
    model, x = heads(variant), leaf(24, 4)
    labels, mask = chained_labels(24)
    order = torch.randperm(24)
    columns = model(x)
    torch.testing.assert_close(model(x[order]), columns[order])
    losses = means(model.losses(columns, labels, mask), len(CHAINED))
    permuted = means(model.losses(columns[order], labels[order], mask[order]), len(CHAINED))
    torch.testing.assert_close(permuted, losses)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_a_break(variant: str):
    """Forward, losses and their gradients; nothing branches on the data."""
    model, x = heads(variant), leaf(24, 4)
    labels, mask = chained_labels(24)

    def step(x: Tensor) -> Tensor:
        return torch.stack([t.value.sum() for t in model.losses(model(x), labels, mask)])

    wanted = step(x)
    torch.compiler.reset()  # the other variants' graphs, which fill the cache of this function
    got = torch.compile(step, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(got, wanted)
    gradients = [torch.autograd.grad(y.sum(), list(model.parameters())) for y in (got, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_without_labels_has_gradients_of_zero(variant: str):
    """A rank may have nothing but padding; the others wait for its gradients."""
    model, x = heads(variant), leaf(3, 4)
    nothing = torch.zeros(3, len(CHAINED))
    terms = model.losses(model(x), nothing, nothing.bool())
    assert {term.task for term in terms} == set(range(len(CHAINED)))
    assert not any(term.samples.any() for term in terms)
    torch.stack([torch.where(t.samples, t.value, 0).sum() for t in terms]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
