# SPDX-License-Identifier: Apache-2.0
"""Multi-IPW, Multi-DR and ESCM²: their losses by loops, and what they are for: no bias."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltarec.config import validate
from deltarec.data.schema import Task
from deltarec.models import TASK_HEADS
from deltarec.models.multi_ipw_dr import PropensityHeads
from tests.models.reference import (
    CHAINED,
    assert_equal,
    check_chained_losses,
    leaf,
    logistic,
    means,
    path,
    tower,
)

SMALLEST = 0.3
"""High enough that some propensities are below it."""
NAMES = list(CHAINED)
HEADS: dict[str, dict[str, Any]] = {
    "multi_ipw": {"name": "multi_ipw"},
    "multi_dr": {"name": "multi_dr"},
    "escm2 ips": {"name": "escm2", "estimate_weight": 0.5, "global_weight": 0.7},
    "escm2 dr": {"name": "escm2", "estimator": "dr", "estimate_weight": 0.5, "global_weight": 0.7},
}
IMPUTED_AT = {"buy": 5, "keep": 6, "like": 7}


def heads(kind: str, tasks: dict[str, Task] = CHAINED, **options: Any) -> PropensityHeads:
    member = TASK_HEADS[HEADS[kind]["name"]]
    config = validate(member.Config, {**HEADS[kind], **options}, kind)
    return member(config, 4, tasks).double()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("kind", HEADS)
def test_columns(kind: str):
    """The tasks' logits, and where losses are imputed a further tower for each conditional task."""
    model, x = heads(kind, hidden=[6, 3]), leaf(5, 4)
    imputes = "dr" in kind
    wanted = []
    for sample in x:
        row = [tower(model.towers, k, sample) for k in range(len(CHAINED))]
        if imputes:
            assert model.imputation is not None
            row += [tower(model.imputation, k, sample) for k in range(len(IMPUTED_AT))]
        wanted.append(torch.cat(row))
    assert_equal(model, model(x), torch.stack(wanted), [x])


@pytest.mark.parametrize("kind", HEADS)
def test_losses(kind: str):
    def loss(
        t: int, chances: list[Tensor], row: Tensor, labels: dict[str, float], observed: bool
    ) -> Tensor:
        name, q = NAMES[t], CHAINED[NAMES[t]].positive_weight
        steps = path(name)
        before = torch.stack([chances[NAMES.index(step)] for step in steps[:-1]]).prod()
        propensity = max(before.item(), SMALLEST)
        error = logistic(chances[t], labels[name], q) if observed else torch.zeros(())
        estimate = error / propensity
        if "dr" in kind:
            imputed = (1 + row[IMPUTED_AT[name]].exp()).log()
            estimate = imputed
            if observed:
                estimate = estimate + (error - imputed) / propensity
                estimate = estimate + (error.detach() - imputed) ** 2 / propensity
        if not kind.startswith("escm2"):
            return estimate
        happened = math.prod(labels[step] for step in steps)
        return 0.5 * estimate + 0.7 * logistic(before * chances[t], happened, q)

    check_chained_losses(heads(kind, smallest_propensity=SMALLEST), loss)


@pytest.mark.parametrize("kind", ["multi_ipw", "multi_dr"])
def test_estimates_are_unbiased_where_the_loss_in_click_space_is_not(kind: str):
    """40,000 impressions whose click makes a conversion likelier, and their true propensities.

    The model predicts one conversion rate for all, so that its loss differs from the mean over
    clicks by the selection alone. For DR the losses are imputed badly on purpose; the mean that
    trains the imputation is taken off.
    """
    generator = torch.Generator().manual_seed(0)
    liking = torch.randn(40_000, generator=generator, dtype=torch.float64)
    click_chance = (liking - 1).sigmoid().clamp(min=0.02)
    click = (torch.rand(liking.shape, generator=generator) < click_chance).double()
    buy = (torch.rand(liking.shape, generator=generator) < (2 * liking).sigmoid()).double()
    predicted = torch.full_like(liking, -0.5)
    whole = F.binary_cross_entropy_with_logits(predicted, buy, reduction="none")
    clicked = whole[click == 1]

    tasks = {"click": Task(), "buy": Task(given="click")}
    model = heads(kind, tasks, smallest_propensity=0.01)
    columns = torch.stack([click_chance.logit(), predicted, liking], dim=1)
    labels, mask = torch.stack([click, buy], dim=1), torch.stack([click == click, click == 1], 1)
    if kind == "multi_dr":
        imputed = F.softplus(liking)
        training = (click * (whole - imputed) ** 2 / click_chance).mean()
        by_sample = imputed + click * (whole - imputed) / click_chance
    else:
        training, by_sample = torch.zeros(()), click * whole / click_chance
    estimate = means(model.losses(columns, labels, mask), 2)[1] - training
    deviation = (by_sample - whole).std() / len(whole) ** 0.5
    assert abs(estimate - whole.mean()) < 3 * deviation
    bias = abs(clicked.mean() - whole.mean())
    assert bias > 10 * max(deviation, clicked.std() / len(clicked) ** 0.5)


def test_options_are_checked():
    for kind, option, value in [
        ("multi_ipw", "smallest_propensity", 0.0),
        ("multi_dr", "smallest_propensity", 1.5),
        ("escm2 ips", "estimate_weight", 0.0),
        ("escm2 ips", "global_weight", -1.0),
    ]:
        with pytest.raises(ValueError, match=f"{option}: got {value}"):
            heads(kind, CHAINED, **{option: value})
