# SPDX-License-Identifier: Apache-2.0
import csv
import json
import math
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from scipy.stats import t as student

from deltarec.comparison import Cell, Comparison, Key, cell, flatten, holm
from deltarec.comparison_plot import draw

AUC = Key("like", "all", "auc")


def result(auc: float | None, seconds: float = 10.0) -> dict[str, Any]:
    scenario = {"a": {"auc": auc, "n": 5}, "b": {"auc": None, "n": 0}}
    return {
        "steps": 7, "samples": 70, "seconds": seconds, "samples_per_second": 7.0,
        "peak_memory_bytes": 5, "embedding_bytes": {"weights": 2_000_000, "optimizer": 500_000},
        "test": {"like": {"all": {"auc": auc, "logloss": 0.5, "n": 5}, "scenario": scenario}},
    }  # fmt: skip


def comparison(runs: dict[str, list[float | None]]) -> Comparison:
    found = Comparison("trial", "test", AUC, dict.fromkeys(runs, next(iter(runs))))
    for label, values in runs.items():
        found.runs[label] = {s: flatten(result(v), "test") for s, v in enumerate(values)}
    return found


def test_a_result_as_flat_values():
    found = flatten(result(0.7), "test")
    assert found[AUC] == found[Key("like", "a", "auc")] == 0.7
    assert found[Key("like", "b", "auc")] is None and found[Key("like", "all", "logloss")] == 0.5
    assert found[Key("", "", "embedding_bytes")] == 2_500_000 and found[Key("", "", "steps")] == 7
    assert all(key.metric != "n" for key in found)


def test_seeds_pair():
    """Against the paired t-test's formula: t = mean(d) / (sd(d) / sqrt(n)), n - 1 degrees."""
    ours, base = {0: 0.80, 1: 0.83, 2: 0.85, 9: 0.1}, {2: 0.83, 0: 0.79, 1: 0.80, 7: 0.2}
    found = cell(ours, base)
    differences = [0.01, 0.03, 0.02]
    statistic = 0.02 / (stdev(differences) / math.sqrt(3))
    unit = math.sqrt((stdev([0.80, 0.83, 0.85]) ** 2 + stdev([0.79, 0.80, 0.83]) ** 2) / 2)
    assert (found.n, found.pairs) == (4, 3)
    assert found.mean == pytest.approx(0.645) and found.deviation == pytest.approx(
        stdev(ours.values())
    )
    assert found.difference == pytest.approx(0.02)
    assert found.deviations == pytest.approx(0.02 / unit)
    assert found.p == pytest.approx(2 * student.sf(statistic, df=2))


@pytest.mark.parametrize(
    ("values", "baseline", "expected"),
    [
        ({}, None, Cell(0, None, None)),
        ({}, {0: 1.0}, Cell(0, None, None)),
        ({0: 1.0}, None, Cell(1, 1.0, None)),
        ({0: 1.0}, {1: 2.0}, Cell(1, 1.0, None)),
        ({0: 1.0}, {0: 2.0}, Cell(1, 1.0, None, 1, -1.0)),
        ({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}, Cell(2, 1.0, 0.0, 2, -1.0)),
        ({0: 1.0, 1: 3.0}, {0: 2.0, 1: 4.0}, Cell(2, 2.0, 2**0.5, 2, -1.0, -1 / 2**0.5)),
    ],
)
def test_few_or_equal_values_claim_nothing(values: dict, baseline: dict | None, expected: Cell):
    found = cell(values, baseline)
    assert found.p is None
    assert [*found.__dict__.values()] == pytest.approx([*expected.__dict__.values()])


@pytest.mark.parametrize(
    ("p", "rejected"),
    [
        ({}, ""),
        ({"a": 0.04}, "a"),
        ({"a": 0.04, "b": 0.02}, "ab"),
        ({"a": 0.04, "b": 0.03}, ""),
        ({"a": 0.01, "b": 0.04, "c": 0.03}, "a"),
        ({"a": 0.01, "b": 0.04, "c": 0.02}, "abc"),
    ],
)
def test_holms_procedure(p: dict[str, float], rejected: str):
    assert holm(p) == set(rejected)


def test_the_table():
    found = comparison({"base": [0.80, 0.81, 0.82], "better": [0.90, 0.912, 0.92], "odd": [0.7]})
    found.unfinished = {"odd": {1: "failed with exit code 1: a|b\nc"}, "bad": {}, "base": {}}
    lines = found.markdown().splitlines()
    assert [word.strip() for word in lines[4].split("|")[1:-1]] == [
        "variant", "n", "like/auc", "difference", "in deviations", "p", "seconds", "samples/s",
        "steps", "embedding MB",
    ]  # fmt: skip
    assert lines[6].startswith("| base    | 3 | 0.8100 ± 0.0100 | baseline   | -")
    assert lines[7].startswith("| better  | 3 | 0.9107 ± 0.0101 | +0.1007    | +10.0 ")
    assert "e-05 *" in lines[7] and "2.50" in lines[7]
    assert lines[8].startswith("| odd     | 1 | 0.7000          | -0.1000    | -    ")
    assert "| variant | like            | like, a         | like, b |" in lines
    assert r"| odd     | 1    | failed with exit code 1: a\|b c |" in lines
    assert found.failed and not comparison({"base": [0.8]}).failed


def test_each_row_names_its_baseline_where_there_are_several():
    found = comparison({"a": [0.1, 0.2], "b": [0.2, 0.4], "c": [0.1, 0.2], "d": [0.3, 0.5]})
    found.baselines = {"a": "a", "b": "a", "c": "c", "d": None}
    lines = found.markdown().splitlines()
    assert "| p   | baseline | seconds" in lines[4]
    assert "| +0.1500    |" in lines[7] and "| a        |" in lines[7]
    assert "| -          |" in lines[9], "d is compared with none"


def test_csv_and_json_have_everything():
    found = comparison({"base": [0.80, 0.81], "other": [0.90, None]})
    rows = list(csv.DictReader(found.csv().splitlines()))
    [row] = [
        r
        for r in rows
        if r["variant"] == "other" and r["metric"] == "auc" and r["scenario"] == "all"
    ]
    assert (row["n"], row["mean"], row["deviation"], row["baseline"]) == ("1", "0.9", "", "base")
    assert float(row["difference"]) == pytest.approx(0.1)
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert plain["metric"] == "like/auc" and list(plain["variants"]) == ["base", "other"]
    other = plain["variants"]["other"]
    assert other["test"]["like"]["a"]["auc"]["mean"] == 0.9
    assert other["test"]["like"]["b"]["auc"]["n"] == 0
    assert other["costs"]["seconds"]["mean"] == 10 and other["seeds"] == [0, 1]


def test_many_scenarios_stay_out_of_the_table_but_not_out_of_the_file():
    found = comparison({"base": [0.8]})
    found.runs["base"][0] = {AUC: 0.8, **{Key("like", str(i), "auc"): 0.1 for i in range(300)}}
    assert max(map(len, found.markdown().split("## auc")[1].splitlines())) < 40
    assert len(found.csv().splitlines()) == 302


def test_the_picture_grows_with_tasks_and_variants(tmp_path: Path):
    image = pytest.importorskip("matplotlib.image")
    sizes = []
    for labels in (["a"], ["a", "b", "c"]):
        found = comparison({label: [0.8, 0.81, None] for label in labels})
        for runs in found.runs.values():
            runs[1] = {**runs[1], Key("buy", "all", "auc"): None}
        draw(found, tmp_path / "plot.png")
        sizes.append(image.imread(tmp_path / "plot.png").shape[:2])
    assert sizes[1][0] > sizes[0][0] and sizes[1][1] == sizes[0][1]
    assert [f.name for f in tmp_path.iterdir()] == ["plot.png"]
