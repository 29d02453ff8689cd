# SPDX-License-Identifier: Apache-2.0
from deltarec.metrics.evaluation import Result
from deltarec.metrics.table import render


def test_render() -> None:
    result: Result = {
        "click": {
            "all": {"auc": 0.75, "calibration": 12.5, "n": 1200},
            "scenario": {"1": {"auc": None, "calibration": 1.0, "n": 7}},
        },
        "price": {"all": {"mae": 3.25, "n": 1200}, "scenario": {}},
    }
    assert render(result).splitlines() == [
        "task   scenario       auc  calibration       mae     n",
        "click  all       0.750000    12.500000            1200",
        "click  1                -     1.000000               7",
        "price  all                              3.250000  1200",
    ]


def test_tasks_without_samples_are_named_alone() -> None:
    result: Result = {
        "buy": {"all": {"recall@10": 0.5, "n": 12}, "scenario": {}},
        "view": {"all": {"recall@20": None, "n": 0}, "scenario": {}},
    }
    assert render(result).splitlines() == [
        "task  scenario  recall@10   n",
        "buy   all        0.500000  12",
        "no samples: view",
    ]
    assert render({"view": result["view"]}).splitlines()[1] == "view  all               -  0"


def test_a_line_for_each_list_of_candidates() -> None:
    own = {"own_hr@10": 0.25, "own_ndcg@10": 0.125, "popular_hr@10": 0.2, "popular_ndcg@10": 0.1}
    all_items = {"hr@10": 0.5, "ndcg@10": 0.25}
    result: Result = {
        "buy": {"all": {**all_items, "sampled_hr@10": 0.75, **own, "n": 12}, "scenario": {}},
        "view": {"all": {"hr@10": 0.5, "n": 7}, "scenario": {}},
    }
    assert render(result).splitlines() == [
        "task  scenario  candidates     hr@10   ndcg@10   n",
        "buy   all       all items   0.500000  0.250000  12",
        "buy   all       sampled     0.750000",
        "buy   all       own         0.250000  0.125000",
        "buy   all       popular     0.200000  0.100000",
        "view  all                   0.500000             7",
    ]
    drawn: Result = {"buy": {"all": {"sampled_hr@10": 0.75, "n": 12}, "scenario": {}}}
    assert render(drawn).splitlines()[1] == "buy   all       sampled     0.750000  12"
