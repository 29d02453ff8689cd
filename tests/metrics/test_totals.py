# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
import torch.distributed as dist

from deltarec.metrics.evaluation import Evaluation, bucket_names
from deltarec.metrics.totals import Totals
from tests.conftest import run_ranks

TASKS = [("click", ["auc", "gauc", "logloss", "calibration"]), ("price", ["rmse"])]
SLICES = {"seen": [1, 2, 6]}


def samples(seed: int) -> list[torch.Tensor]:
    """Prediction, label, mask, scenario, user, slices of 300 samples."""
    random = torch.Generator().manual_seed(seed)
    probability = torch.rand(300, generator=random)
    click = torch.rand(300, generator=random) < probability
    price = torch.randn(300, 2, generator=random)
    return [
        torch.stack([probability, price[:, 0]], dim=1),
        torch.stack([click.float(), price[:, 1]], dim=1),
        torch.rand(300, 2, generator=random) < 0.9,
        torch.randint(0, 2, (300,), generator=random),
        torch.randint(0, 20, (300,), generator=random) + 100 * seed,
        torch.randint(0, 4, (300, 1), generator=random),
    ]


def evaluation() -> Evaluation:
    return Evaluation(TASKS, ["web", "app"], has_user=True, slices=SLICES)


def over_parts() -> Any:
    """Runs on each rank, with its share of each of three parts; the first part goes to rank 0."""
    totals = Totals(evaluation())
    for part in range(3):
        mine = evaluation()
        share = slice(dist.get_rank(), None, dist.get_world_size())
        if part or dist.get_rank() == 0:
            mine.update(*(column[share if part else slice(None)] for column in samples(part)))
        mine.compute(totals)
    return totals.compute()


def at_once() -> Any:
    whole = evaluation()
    for part in range(3):
        whole.update(*samples(part))
    return whole.compute()


def test_of_parts_are_those_of_all_samples():
    """No user is in two parts, so GAUC is equal too; AUC but for its bins."""
    [expected] = run_ranks(1, at_once)
    assert list(expected["click"]["scenario"]) == [
        *("web", "app"),
        *("seen <1", "seen 1", "seen 2-5", "seen 6+"),
    ]
    for ranks in (1, 3):
        found, *others = run_ranks(ranks, over_parts)
        assert all(other == found for other in others)
        for task, result in expected.items():
            for name, values in {"all": result["all"], **result["scenario"]}.items():
                mine = {"all": found[task]["all"], **found[task]["scenario"]}[name]
                assert mine["n"] == values["n"]
                for metric, value in values.items():
                    tolerance = 1e-3 if metric == "auc" else 1e-9  # few samples, so many ties
                    assert mine[metric] == pytest.approx(value, rel=tolerance), (name, metric)


def test_names_of_buckets():
    assert bucket_names([1, 2, 6, 21]) == ["<1", "1", "2-5", "6-20", "21+"]
    assert bucket_names([5]) == ["<5", "5+"]
