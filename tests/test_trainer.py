# SPDX-License-Identifier: Apache-2.0
"""What a job leaves behind, and that its options do what they say; on one process."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deltarec.config import load
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.small_job import CONFIG, SPLITS, small_job, write_small_data

METRICS = {"auc", "gauc", "logloss", "normalised_entropy", "calibration", "n"}
STEPS = 50


@dataclass(frozen=True)
class Run:
    job: Job
    folder: Path
    result: dict[str, Any]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").open()]

    def train_losses(self, task: str) -> list[float]:
        return [r[f"loss/{task}"] for r in self.records if r["split"] == "train"]

    def evaluated_at(self) -> list[int]:
        return sorted({r["step"] for r in self.records if r["split"] == "valid"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


def fit(data: Path, folder: Path, **overrides: Any) -> Run:
    job = small_job(data, **overrides)
    with process_group(threads=1) as device:
        result = Trainer(job, RunFolder(folder), device).fit()
    return Run(job, folder, result)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two epochs and a half, with everything that a run can leave behind."""
    yield fit(
        data,
        tmp_path_factory.mktemp("run"),
        data__test=["valid"],
        train__epochs=3,
        train__max_steps=STEPS,
        train__evaluate_every=20,
        train__deterministic=True,
        train__profile={"start": 2, "steps": 2},
        train__optimizer__schedule={"name": "linear", "warmup_steps": 2},
    )
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def rough(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs of four steps in bf16, by the plain loop."""
    return fit(
        data,
        tmp_path_factory.mktemp("rough"),
        train__batch_size=500,
        train__epochs=2,
        train__precision="bf16",
        train__pipeline="plain",
        train__log_every=3,
    )


def test_max_steps_stop_and_the_loss_falls(run: Run):
    assert run.result["steps"] == STEPS and run.result["samples"] == 100 * STEPS
    losses = run.train_losses("click")
    assert len(losses) == STEPS
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.02
    assert run.result["valid"]["click"]["all"]["auc"] > 0.6


def test_evaluates_every_so_many_steps_and_at_the_end(run: Run):
    assert run.evaluated_at() == [20, 40, STEPS]


def test_evaluates_at_the_end_of_each_epoch_if_not_told_otherwise(rough: Run):
    assert rough.evaluated_at() == [4, 8]


def test_logs_every_so_many_steps_and_at_the_end(rough: Run):
    assert [r["step"] for r in rough.records if r["split"] == "train"] == [3, 6, 8]


def test_bf16_trains_like_fp32(data: Path, tmp_path: Path, rough: Run):
    exact = fit(
        data,
        tmp_path,
        train__batch_size=500,
        train__epochs=2,
        train__log_every=3,
        data__valid=[],
    )
    for task in ("click", "buy"):
        assert rough.train_losses(task) == pytest.approx(exact.train_losses(task), rel=0.02)
        assert rough.train_losses(task) != exact.train_losses(task)
    assert "valid" not in exact.result and exact.evaluated_at() == []


def test_result_has_the_documented_shape(run: Run):
    result = json.loads((run.folder / "result.json").read_text())
    assert result == json.loads(json.dumps(run.result))
    documented = {"steps", "samples", "seconds", "samples_per_second", "embedding_bytes"}
    assert result.keys() >= documented | {"test", "valid", "versions", "config_sha256"}
    rows = sum(table["rows"] for table in CONFIG["embedding"]["tables"].values())
    assert result["embedding_bytes"]["weights"] == rows * 8 * 4
    assert result["samples_per_second"] == pytest.approx(100 * STEPS / result["seconds"], rel=0.01)
    assert result["versions"].keys() >= {"torch", "torchrec", "python"}
    for split in ("valid", "test"):
        assert list(result[split]) == ["click", "buy", "click*buy"]
        for values in result[split].values():
            assert values["all"].keys() == METRICS
            assert list(values["scenario"]) == ["web", "app"]
            assert all(metrics.keys() == METRICS for metrics in values["scenario"].values())
            assert sum(m["n"] for m in values["scenario"].values()) == values["all"]["n"]
    assert result["test"] == result["valid"]
    assert result["test"]["click"]["all"]["n"] == SPLITS["valid"]
    assert result["test"]["click*buy"]["all"]["n"] == SPLITS["valid"]
    assert result["test"]["buy"]["all"]["n"] < SPLITS["valid"]


def test_the_configuration_in_the_run_folder_is_the_job(run: Run):
    path = run.folder / "config.yaml"
    assert load(Job, path) == run.job
    assert run.result["config_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_plan_names_every_table(run: Run):
    plan = (run.folder / "plan.txt").read_text()
    assert all(f"\n{table} " in plan for table in CONFIG["embedding"]["tables"])


def test_metrics_have_one_line_for_each_step_or_task_and_scenario(run: Run):
    train = [r for r in run.records if r["split"] == "train"]
    assert [r["step"] for r in train] == list(range(1, STEPS + 1))
    values = {"loss/click", "loss/buy", "learning_rate", "samples_per_second"}
    for record in train:
        assert record.keys() == {"step", "split", "task", "scenario"} | values
        assert record["task"] is None and record["scenario"] is None
    rates = [record["learning_rate"] for record in train]
    factors = [0.5, 1.0] + [1 - step / (STEPS - 2) for step in range(STEPS - 2)]
    assert rates == pytest.approx([0.01 * factor for factor in factors])
    wanted = [(t, s) for t in ("click", "buy", "click*buy") for s in ("all", "web", "app")]
    for step in (20, 40):
        found = [r for r in run.records if r["split"] == "valid" and r["step"] == step]
        assert [(r["task"], r["scenario"]) for r in found] == wanted
        assert all(r.keys() == {"step", "split", "task", "scenario"} | METRICS for r in found)


def test_tensorboard_has_losses_and_metrics(run: Run):
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss/click", "train/learning_rate", "valid/click/auc"} <= set(tags)
    assert {"valid/buy/web/logloss", "test/click/app/auc"} <= set(tags)
    logged = [event.value for event in events.Scalars("train/loss/click")]
    assert logged == pytest.approx(run.train_losses("click"), rel=1e-6)


def test_the_profiler_traces_its_window(run: Run):
    events = json.loads((run.folder / "trace_rank0.json").read_text())["traceEvents"]
    names = {event.get("name", "") for event in events}
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}
    assert "aten::addmm" in names


def test_nothing_is_left_half_written(run: Run):
    assert not list(run.folder.rglob("*.partial"))


def test_the_seed_decides_the_run(data: Path, tmp_path: Path, rough: Run):
    options = {"train__batch_size": 500, "train__log_every": 3, "data__valid": []}
    options |= {"train__precision": "bf16", "train__pipeline": "plain", "train__max_steps": 3}
    again, other = (fit(data, tmp_path / str(s), train__seed=s, **options) for s in (3, 4))
    assert again.train_losses("click") == rough.train_losses("click")[:1]
    assert other.train_losses("click") != again.train_losses("click")
