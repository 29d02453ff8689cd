# SPDX-License-Identifier: Apache-2.0
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from deltarec.data.prepare import Synth
from deltarec.data.prepare.dataset import prepare
from deltarec.data.prepare.synth import BLOCK_ROWS, World, effects, judge

SMALL: dict[str, Any] = {
    "num_ids": 3,
    "table_sizes": [1000, 50],
    "num_dense": 4,
    "num_sequences": 2,
    "max_length": 5,
    "num_scenarios": 3,
}


def rows(options: Synth, begin: int, end: int) -> tuple[pa.Table, np.ndarray]:
    parts = list(World(options).rows(begin, end))
    table = pa.concat_tables([table for table, _ in parts]).combine_chunks()
    return table, np.concatenate([probability for _, probability in parts], axis=1)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_two_preparations_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        prepare(Synth(rows=30_000, seed=seed, **SMALL), tmp_path, tmp_path / name)
    for split in ("train", "valid", "test"):
        a, b, c = ((tmp_path / n / split / "part-00000.parquet").read_bytes() for n in "abc")
        assert a == b != c


def test_columns_and_ranges() -> None:
    options = Synth(**SMALL)
    table, _ = rows(options, 0, 20_000)
    assert table.column_names == [
        *["id_0", "id_1", "id_2", "dense_0", "dense_1", "dense_2", "dense_3"],
        *["sequence_0", "sequence_1", "scenario", "task_0", "task_1"],
    ]
    assert options.sizes == [1000, 50, 1000]
    assert table["id_0"].to_numpy().min() >= 0 and 990 < table["id_0"].to_numpy().max() < 1000
    for name, size in [("id_1", 50), ("scenario", 3), ("task_0", 2)]:
        assert np.array_equal(np.unique(table[name]), np.arange(size))
    lengths = table["sequence_0"].combine_chunks().value_lengths().to_numpy()
    assert np.array_equal(np.unique(lengths), np.arange(6))
    assert np.unique(table["sequence_0"].combine_chunks().flatten()).max() == 49  # id_1's table


def test_rows_do_not_depend_on_how_they_are_cut() -> None:
    options = Synth(**SMALL)
    end = 2 * BLOCK_ROWS + 100
    whole, probability = rows(options, 0, end)
    cuts = [0, 1, 1000, BLOCK_ROWS, BLOCK_ROWS + 7, end]
    pieces = [rows(options, cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1)]
    assert pa.concat_tables([table for table, _ in pieces]).combine_chunks().equals(whole)
    assert np.array_equal(np.concatenate([p for _, p in pieces], axis=1), probability)


def test_the_truth_is_the_formula_of_the_module() -> None:
    options = Synth(**SMALL)
    world = World(options)
    table, probability = next(world.rows(0, 20))
    for i, row in enumerate(table.to_pylist()):
        fields = [effects(0, k, np.array([row[f"id_{k}"]]))[:, 0] for k in range(3)]
        scale = np.mean(1 / np.arange(1, 6)) ** -0.5
        for k in range(2):
            items = np.array(row[f"sequence_{k}"], dtype=np.int64)
            mean = effects(0, k + 1, items).mean(axis=1) if len(items) else np.zeros(4)
            fields.append(mean * scale)
        products = [left @ right / 2 for left, right in itertools.pairwise(fields)]
        dense = [row[f"dense_{k}"] for k in range(4)]
        x = np.concatenate([*fields, products, dense])
        scenario = row["scenario"]
        logits = world.weights[scenario] @ x + world.intercepts[scenario]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), probability[:, i], rtol=1e-5)


def test_effects_have_mean_0_and_variance_1_and_differ_by_table_and_seed() -> None:
    ids = np.arange(100_000)
    values = effects(0, 0, ids)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=0.015)
    np.testing.assert_allclose(np.cov(values), np.eye(4), atol=0.015)
    for other in (effects(0, 1, ids), effects(1, 0, ids), np.roll(values, 1, axis=1)):
        assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.01


def test_labels_have_the_wanted_rates_and_follow_the_truth() -> None:
    options = Synth(base_rate=0.1, num_scenarios=3, num_ids=8, num_dense=4)
    table, probability = rows(options, 0, 100_000)
    scenario = table["scenario"].to_numpy()
    for task in range(2):
        label = table[f"task_{task}"].to_numpy()
        for s, rate in enumerate([1 / 19, 1 / 10, 2 / 11]):
            assert label[scenario == s].mean() == pytest.approx(rate, rel=0.1)
        for low in (0.02, 0.1, 0.3):
            near = np.abs(probability[task] - low) < 0.2 * low
            expected, spread = probability[task, near].mean(), (low / near.sum()) ** 0.5
            assert abs(label[near].mean() - expected) < 4 * spread


def test_tasks_may_have_rates_of_their_own() -> None:
    options = Synth(base_rate=[0.3, 0.01], num_ids=8, num_dense=4)
    table, _ = rows(options, 0, 200_000)
    for task, rate in enumerate(options.base_rate):
        assert table[f"task_{task}"].to_numpy().mean() == pytest.approx(rate, rel=0.1)
    with pytest.raises(ValueError, match=r"\[0.1\]: expected num_tasks = 2 numbers"):
        Synth(base_rate=[0.1])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.3])
def test_ids_follow_the_power_law(exponent: float) -> None:
    table, _ = rows(Synth(num_ids=1, table_sizes=[1000], zipf_exponent=exponent), 0, 200_000)
    counts = np.sort(np.bincount(table["id_0"].to_numpy(), minlength=1000))[::-1]
    slope = np.log(counts[10] / counts[200]) / np.log(201 / 11)
    assert slope == pytest.approx(exponent, abs=0.12)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.7, 1.0])
def test_task_correlation_is_planted_and_visible(correlation: float) -> None:
    options = Synth(
        task_correlation=correlation, num_tasks=3, num_scenarios=2, num_ids=12, signal=3
    )
    for weights in World(options).weights.astype(np.float64):
        assert cosine(weights[0], weights[1]) == pytest.approx(correlation, abs=1e-6)
        assert cosine(weights[0], weights[2]) == pytest.approx(abs(correlation), abs=1e-6)
    table, _ = rows(options, 0, 50_000)
    seen = np.corrcoef(table["task_0"].to_numpy(), table["task_1"].to_numpy())[0, 1]
    assert seen == pytest.approx(0, abs=0.08) if correlation == 0 else seen * correlation > 0.1


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0])
def test_scenario_shift_is_planted(shift: float) -> None:
    weights = World(Synth(scenario_shift=shift, num_scenarios=2)).weights[:, 0].astype(np.float64)
    tolerance = 3 * shift / Synth().num_inputs ** 0.5 + 1e-6
    assert cosine(weights[0], weights[1]) == pytest.approx(1 - shift, abs=tolerance)


def test_best_values_are_those_of_sklearn_on_the_regenerated_truth(tmp_path: Path) -> None:
    options = Synth(rows=30_000, **SMALL)
    prepare(options, tmp_path, tmp_path / "synth")
    summary = json.loads((tmp_path / "synth" / "dataset.json").read_text())
    assert summary["rows"] == {"train": 24_000, "valid": 3_000, "test": 3_000}
    assert summary["options"] == options.model_dump()
    assert summary["table_sizes"]["sequence_0"] == 50
    written = pq.read_table(tmp_path / "synth" / "test")
    regenerated, probability = rows(options, 27_000, 30_000)
    assert written.equals(regenerated)
    for task in range(2):
        label = written[f"task_{task}"].to_numpy()
        found = summary["best"][f"task_{task}"]
        assert found["all"]["auc"] == pytest.approx(roc_auc_score(label, probability[task]))
        assert found["all"]["logloss"] == pytest.approx(log_loss(label, probability[task]))
        inside = written["scenario"].to_numpy() == 2
        auc = roc_auc_score(label[inside], probability[task, inside])
        assert found["scenario"]["2"]["auc"] == pytest.approx(auc)
        assert found["scenario"]["2"]["n"] == inside.sum()


def test_cascade_selects_by_what_the_features_show(tmp_path: Path) -> None:
    options = Synth(rows=60_000, cascade=True, num_tasks=3, task_correlation=0.9, **SMALL)
    table, probability = rows(options, 0, 48_000)
    plain, _ = rows(options.model_copy(update={"cascade": False}), 0, 48_000)
    steps = [table[f"task_{t}"].to_numpy() for t in range(3)]
    for t, step in enumerate(steps):
        drawn = plain[f"task_{t}"].to_numpy()
        if t:
            assert np.array_equal(table[f"potential_{t}"].to_numpy(), drawn)
        assert np.array_equal(step, drawn * steps[t - 1] if t else drawn)
    reached = steps[0] == 1
    assert probability[1, reached].mean() > 1.5 * probability[1].mean()
    deviation = (probability[1, reached].mean() / reached.sum()) ** 0.5
    assert abs(steps[1][reached].mean() - probability[1, reached].mean()) < 4 * deviation

    prepare(options, tmp_path, tmp_path / "synth")
    best = json.loads((tmp_path / "synth" / "dataset.json").read_text())["best"]
    test = pq.read_table(tmp_path / "synth" / "test")
    assert list(best) == ["task_0", "task_1", "potential_1", "task_2", "potential_2"]
    for t in (1, 2):
        assert best[f"task_{t}"]["all"]["n"] == test[f"task_{t - 1}"].to_numpy().sum()
        assert best[f"potential_{t}"]["all"]["n"] == 6_000


def test_judge_counts_ties_half_and_is_null_where_undefined() -> None:
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 1000).astype(np.int8), rng.integers(1, 9, 1000) / 10
    assert judge(label, score)["auc"] == pytest.approx(roc_auc_score(label, score))
    assert judge(np.ones(3, np.int8), np.full(3, 0.5))["auc"] is None
    assert judge(np.ones(0, np.int8), np.ones(0)) == {"auc": None, "logloss": None, "n": 0}


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="table_sizes"):
        Synth(num_ids=1, table_sizes=[10, 10])
    with pytest.raises(ValueError, match="num_tasks"):
        Synth(num_ids=1, num_dense=0, num_tasks=3)
