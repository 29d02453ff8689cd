# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from deltarec.distributed import process_group
from deltarec.metrics.evaluation import Evaluation, Result
from tests.metrics.samples import SCENARIOS, TASKS, Rows, cases, evaluate, is_close, make_rows


@pytest.fixture(scope="module", autouse=True)
def _group_of_one() -> Iterator[None]:
    with process_group(threads=1):
        yield


def _expected(rows: Rows) -> Result:
    prediction, label, mask, scenario, user = (column.numpy() for column in rows)
    result: Result = {}
    for t, (task, _) in enumerate(TASKS):
        reference = [_binary, _regression][t]

        def values(chosen: np.ndarray, t: int = t, reference=reference):
            p, y = prediction[chosen, t].astype(np.float64), label[chosen, t].astype(np.float64)
            return reference(p, y, user[chosen]) | {"n": int(chosen.sum())}

        result[task] = {
            "all": values(mask[:, t]),
            "scenario": {
                name: values(mask[:, t] & (scenario == s)) for s, name in enumerate(SCENARIOS)
            },
        }
    return result


def _binary(p: np.ndarray, y: np.ndarray, user: np.ndarray) -> dict[str, float | None]:
    p = p.clip(1e-7, 1 - 1e-7)
    base = y.mean() if len(y) else 0.0
    loss = log_loss(y, p, labels=[0, 1]) if len(y) else 0.0
    both = 0 < base < 1
    entropy = log_loss(y, np.full(len(y), base)) if both else 1.0
    weighted, weight = 0.0, 0
    for one in set(user.tolist()):
        of_user = user == one
        if len(set(y[of_user].tolist())) == 2:
            weighted += of_user.sum() * roc_auc_score(y[of_user], p[of_user])
            weight += of_user.sum()
    return {
        "auc": float(roc_auc_score(y, p)) if both else None,
        "gauc": weighted / weight if weight else None,
        "logloss": loss if len(y) else None,
        "normalised_entropy": loss / entropy if both else None,
        "calibration": sum(p.tolist()) / sum(y.tolist()) if base else None,
    }


def _regression(p: np.ndarray, y: np.ndarray, user: np.ndarray) -> dict[str, float | None]:
    if not len(y):
        return {"rmse": None, "mae": None}
    return {"rmse": mean_squared_error(y, p) ** 0.5, "mae": mean_absolute_error(y, p)}


@pytest.mark.parametrize("case", cases())
def test_equals_the_reference(case: str) -> None:
    rows = cases()[case]
    assert is_close(evaluate(rows), _expected(rows), tolerance=1e-9)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32)),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference_on_any_samples(samples: list[tuple[float, bool]], seed: int) -> None:
    score, click = np.array([p for p, _ in samples]), np.array([y for _, y in samples])
    rows = make_rows(score, click.astype(float), seed=seed)
    assert is_close(evaluate(rows, batch_size=7), _expected(rows), tolerance=1e-9)


def test_one_scenario_is_not_split() -> None:
    prediction, label, mask, scenario, _ = cases()["two samples"]
    for scenarios in ([], ["home"]):
        evaluation = Evaluation([("click", ["auc"]), ("price", ["mae"])], scenarios)
        evaluation.update(prediction, label, torch.ones_like(mask), scenario)
        result = evaluation.compute()
        assert result["click"] == {"all": {"auc": 0.0, "n": 2}, "scenario": {}}


def test_keeps_its_own_copy_of_a_batch() -> None:
    rows = cases()["random"]
    evaluation = Evaluation(TASKS, SCENARIOS, has_user=True)
    lent = [column.clone() for column in rows]
    evaluation.update(*lent)
    for column in lent:
        column.zero_()
    assert evaluation.compute() == evaluate(rows, batch_size=len(rows[0]))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([("click", ["auk"])], "'click': unknown metric 'auk': expected one of auc, gauc"),
        ([("click", ["auc", "gauc"])], "name the column in data.user"),
        ([("click", ["auc", "mae"])], r"one kind, but it has auc \(binary\), mae \(regression\)"),
    ],
)
def test_refuses_impossible_metrics(tasks: list[tuple[str, list[str]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation(tasks)


@pytest.mark.parametrize(
    ("metric", "prediction", "label", "message"),
    [
        ("auc", math.nan, 1.0, r"'t': 1 predictions are not probabilities in \[0, 1\]"),
        ("auc", 1.5, 1.0, r"'t': 1 predictions are not probabilities in \[0, 1\]"),
        ("auc", 0.5, 0.3, "'t': 1 labels are not 0 or 1"),
        ("mae", math.inf, 0.3, "'t': 1 predictions are not finite numbers"),
        ("mae", 2.0, math.nan, "'t': 1 labels are not finite numbers"),
    ],
)
def test_refuses_meaningless_samples(
    metric: str, prediction: float, label: float, message: str
) -> None:
    evaluation = Evaluation([("t", [metric])])
    scenario = torch.zeros(1, dtype=torch.int64)
    value = torch.tensor([[prediction]]), torch.tensor([[label]])
    evaluation.update(*value, torch.zeros(1, 1, dtype=torch.bool), scenario)
    assert evaluation.compute()["t"]["all"] == {metric: None, "n": 0}
    evaluation.update(*value, torch.ones(1, 1, dtype=torch.bool), scenario)
    with pytest.raises(ValueError, match=message):
        evaluation.compute()
