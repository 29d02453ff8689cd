# SPDX-License-Identifier: Apache-2.0
"""Inputs of the metrics' tests, apart from the tests so that ranks start without scikit-learn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deltarec.metrics import METRICS
from deltarec.metrics.evaluation import Evaluation, Result

BINARY = [name for name, metric in METRICS.items() if metric.kind == "binary"]
REGRESSION = [name for name, metric in METRICS.items() if metric.kind == "regression"]
TASKS = [("click", BINARY), ("price", REGRESSION)]
SCENARIOS = ["home", "search", "never"]

Rows = list[Tensor]
"""Predictions, labels and masks of both tasks, scenarios, users."""


def make_rows(
    click_score: np.ndarray, click: np.ndarray, num_users: int = 5, seed: int = 0
) -> Rows:
    """Both tasks' predictions, labels and masks, the scenarios (never the third), the users."""
    generator = np.random.default_rng(seed)
    n = len(click)
    price = generator.lognormal(size=(2, n))
    return [
        torch.tensor(np.stack([click_score, price[0]], 1), dtype=torch.float32),
        torch.tensor(np.stack([click, price[1]], 1), dtype=torch.float32),
        torch.tensor(generator.random((n, 2)) < 0.9),
        torch.tensor(generator.integers(0, 2, n)),
        torch.tensor(generator.integers(0, num_users, n) * 2**40 - 2**41),
    ]


def cases() -> dict[str, Rows]:
    generator = np.random.default_rng(7)
    n = 500
    score, click = generator.random(n), generator.random(n) < 0.3
    return {
        "random": make_rows(score, click),
        "many users": make_rows(score, click, num_users=200),
        "heavy ties": make_rows(generator.integers(0, 4, n) / 3, click),
        "constant": make_rows(np.full(n, 0.25), click),
        "extremes": make_rows(np.where(click, 1.0, 0.0), generator.random(n) < 0.5),
        "nearly the extremes": make_rows(np.where(click, 1e-9, 1e-10), generator.random(n) < 0.5),
        "only negatives": make_rows(score, np.zeros(n)),
        "only positives": make_rows(score, np.ones(n)),
        "two samples": make_rows(np.array([0.3, 0.6]), np.array([1, 0])),
        "no samples": make_rows(np.zeros(0), np.zeros(0)),
    }


def evaluate(rows: Rows, batch_size: int = 64) -> Result:
    evaluation = Evaluation(TASKS, SCENARIOS, has_user=True)
    for batch in zip(*(column.split(batch_size) for column in rows), strict=True):
        evaluation.update(*batch)
    return evaluation.compute()


def flat(result: Result) -> dict[str, float | None]:
    """The values by `TASK/SCENARIO/METRIC`."""
    return {
        f"{task}/{scenario}/{metric}": value
        for task, measured in result.items()
        for scenario, values in [("all", measured["all"]), *measured["scenario"].items()]
        for metric, value in values.items()
    }


def is_close(result: Result, expected: Result, tolerance: float) -> bool:
    """Whether the same values are undefined and the others equal, relatively and absolutely."""
    values, wanted = flat(result), flat(expected)
    defined = {name: value for name, value in wanted.items() if value is not None}
    undefined = {name for name, value in values.items() if value is None}
    if undefined != wanted.keys() - defined.keys():
        return False
    found = {name: value for name, value in values.items() if value is not None}
    return found == pytest.approx(defined, rel=tolerance, abs=tolerance)
