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
