# SPDX-License-Identifier: Apache-2.0
"""What holds of every scenario module that knows no sample by its place in the batch."""

import torch
from torch import Tensor, nn

from deltarec.layers.batch_norm import set_real_samples
from deltarec.models.roles import Fields, ScenarioModule
from tests.models.reference import fields

SCENARIO = [2, 0, 0, 2, 0]
"""Of the five samples; scenario 1 has none of them."""


def randomise(model: nn.Module) -> None:
    """Scenarios start alike in places, and a test must tell them apart."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)


def outputs(model: ScenarioModule, inputs: Fields, rows: list[int]) -> Tensor:
    """The module's outputs for a batch of these samples."""
    set_real_samples(model, torch.ones(len(rows), dtype=torch.bool))
    chosen = Fields([vector[rows] for vector in inputs.vectors], inputs.dense[rows])
    return model(chosen, torch.tensor(SCENARIO)[rows])


def check_properties(model: ScenarioModule, reads_absent: bool = False) -> None:
    """Another order permutes; evaluation knows one sample at a time; the absent stay unread.

    `reads_absent` leaves the last out. Every parameter has a gradient, those of absent scenarios
    too, of zeros: every rank needs them all.
    """
    inputs, leaves = fields()
    everything = list(range(5))
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        torch.testing.assert_close(
            outputs(model, inputs, order), outputs(model, inputs, everything)[order]
        )
        model.eval()
        alone = torch.cat([outputs(model, inputs, [i]) for i in everything])
        torch.testing.assert_close(outputs(model, inputs, everything), alone)
        model.train()
        absent = []
        for parameter in model.parameters():
            if parameter.ndim > 1 and len(parameter) == 3 and not reads_absent:  # its scenarios
                parameter[1] = torch.nan
                absent.append(parameter)
    y = outputs(model, inputs, everything)
    y.sum().backward()
    assert (absent or reads_absent) and y.isfinite().all() and y.shape == (5, model.output_dim)
    for tensor in [*leaves, *model.parameters()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    for parameter in absent:
        assert not parameter.grad[1].any()
