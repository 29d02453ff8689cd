# SPDX-License-Identifier: Apache-2.0
"""Quantised tables in TorchRec's collections, on one process."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import JaggedTensor

from deltarec.data.batch import Batch, Position
from deltarec.embeddings.code_statistics import CodeStatistics, saturation_warning
from deltarec.embeddings.planning import Hardware
from deltarec.embeddings.quantised_kernel import table_key
from deltarec.embeddings.tables import lsq_step
from deltarec.plan import plan_job
from deltarec.trainer import Trainer, _Batches
from deltarec_kernels.rounding import ASSIGNMENT, uniform
from deltarec_kernels.tables import Layout
from tests.conftest import run_ranks
from tests.embeddings.quantised_job import (
    TABLES,
    assert_equal_state,
    quantised_job,
    trainer,
    whole_state,
)
from tests.small_job import write_small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


class Plain:
    """ALPT by its equations, with dense tables and plain PyTorch, on one process.

    It starts from a trainer's initial tables and network; every optimiser is SGD.
    """

    def __init__(self, mine: Trainer, table_rate: float, step_rate: float, dense_rate: float):
        self.job = mine.job
        self.schema = mine.schema
        self.specs = mine.job.embedding.resolved()
        self.rates = table_rate, step_rate, dense_rate
        self.network = copy.deepcopy(mine.model.module.network)
        self.losses = mine.model.module.losses
        state = whole_state(mine)
        self.step = {n: state[f"{n}.step"] for n in TABLES if f"{n}.step" in state}
        self.codes = {n: state[f"{n}.codes"].view(torch.int8).float() for n in self.step}
        self.values = {n: self.dequantised(n) for n in self.step}
        for key, value in mine.model.state_dict().items():
            if key.endswith(".weight") and key.startswith("tables."):
                local = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
                self.values[key.split(".")[-2]] = local.detach().clone()

    def by_column(self, name: str, step: Tensor) -> Tensor:
        return step.repeat_interleave(self.specs[name].column_block, 1)

    def dequantised(self, name: str) -> Tensor:
        return self.codes[name] * self.by_column(name, self.step[name])

    def loss(self, network: Any, values: dict[str, Tensor], batch: Batch) -> Tensor:
        pooled, weighted, unpooled = {}, {}, {}
        for name in self.schema.pooled:
            jagged = batch.pooled[name]  # type: ignore[index]
            pooled[name] = self.bags(values[self.schema.table(name)], jagged, name == "tags")
        for name in self.schema.weighted:
            jagged = batch.weighted[name]  # type: ignore[index]
            weighted[name] = self.bags(values[self.schema.table(name)], jagged, False)
        for name in self.schema.unpooled:
            jagged = batch.unpooled[name]  # type: ignore[index]
            rows = values[self.schema.table(name)][jagged.values()]
            unpooled[name] = JaggedTensor(rows, lengths=jagged.lengths())
        outputs = [Output(pooled), Output(weighted), unpooled]
        return self.losses(network(batch, outputs), batch).sum()

    @staticmethod
    def bags(values: Tensor, jagged: JaggedTensor, mean: bool) -> Tensor:
        weights = jagged.weights_or_none()
        bags, start = [], 0
        for length in jagged.lengths().tolist():
            rows = values[jagged.values()[start : start + length]]
            if weights is not None:
                rows = rows * weights[start : start + length, None]
            bags.append(rows.sum(0) / (length if mean and length else 1))
            start += length
        return torch.stack(bags)

    def touched(self, table: str, batch: Batch) -> Tensor:
        ids = [
            jagged[name].values()
            for jagged in (batch.pooled, batch.weighted, batch.unpooled)
            for name in jagged.keys()  # type: ignore[union-attr]  # noqa: SIM118
            if self.schema.table(name) == table
        ]
        return torch.cat(ids).unique()

    def train(self, batch: Batch, number: int, passes: str) -> None:
        table_rate, _, dense_rate = self.rates
        names = list(self.values)
        leaves = {name: self.values[name].clone().requires_grad_() for name in names}
        weights = list(self.network.parameters())
        loss = self.loss(self.network, leaves, batch)
        found = torch.autograd.grad(loss, [*leaves.values(), *weights])
        gradients = dict(zip(names, found, strict=False))
        updated = {
            name: self.values[name]
            - (dense_rate if self.specs[name].sharding == "data_parallel" else table_rate)
            * gradients[name]
            for name in names
        }
        with torch.no_grad():
            for weight, gradient in zip(weights, found[len(names) :], strict=True):
                weight -= dense_rate * gradient
        if passes == "two":
            faked = {
                name: self.quantised(name, updated[name], None)[0] if name in self.step else value
                for name, value in updated.items()
            }
            leaves = {name: value.detach().requires_grad_() for name, value in faked.items()}
            loss = self.loss(copy.deepcopy(self.network), leaves, batch)
            found = torch.autograd.grad(loss, list(leaves.values()))
            gradients = dict(zip(names, found, strict=True))
        for name in names:
            self.values[name] = updated[name]
            if name in self.step:
                rows = self.touched(name, batch)
                self.learn_step(name, rows, updated[name], gradients[name])
                self.round(name, rows, updated[name], number)

    def quantised(self, name: str, weight: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        step = self.by_column(name, self.step[name])
        scaled = (weight / step).clamp(-128, 127)
        codes = scaled.round() if noise is None else (scaled + noise).floor()
        return codes * step, codes

    def learn_step(self, name: str, rows: Tensor, weight: Tensor, gradient: Tensor) -> None:
        spec = self.specs[name]
        scaled = weight / self.by_column(name, self.step[name])
        slope = torch.where(scaled <= -128, -128.0, scaled.round() - scaled)
        slope = torch.where(scaled >= 127, 127.0, slope)
        by_block = (gradient * slope).unflatten(1, (-1, spec.column_block)).sum(2)
        scale = (self.job.train.batch_size * spec.column_block * 127) ** -0.5
        moved = self.step[name] - self.rates[1] * scale * by_block
        self.step[name][rows] = moved.clamp(min=1e-8)[rows]

    def round(self, name: str, rows: Tensor, weight: Tensor, number: int) -> None:
        spec = self.specs[name]
        layout = Layout(spec.rows, spec.dim, 0, 0, 0, 0, 0, table_key(name), 0, 0)
        noise = uniform(self.job.train.seed, number, layout, torch.arange(spec.rows))
        self.codes[name][rows] = self.quantised(name, weight, noise)[1][rows]
        self.values[name] = self.dequantised(name)


class Output:
    """Stands for a KeyedTensor."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self.to_dict = lambda: vectors


@pytest.mark.parametrize("pipeline", ["plain", "sparse_dist"])
@pytest.mark.parametrize("passes", ["one", "two"])
def test_training_follows_the_equations(
    one_process: torch.device, data: Path, tmp_path: Path, passes: str, pipeline: str
):
    """Five tables int8 of pooled, weighted and sequence features, one fp32, one replicated."""
    job = quantised_job(
        data,
        embedding__optimizer={"name": "sgd", "lr": 2.0},
        embedding__alpt={"passes": passes, "step_optimizer": {"name": "sgd", "lr": 300.0}},
        embedding__tables__tags__precision="fp32",
        embedding__tables__country__precision="fp32",
        embedding__tables__country__sharding="data_parallel",
        train__optimizer__dense={"name": "sgd", "lr": 0.1},
        train__pipeline=pipeline,
    )
    mine = trainer(job, tmp_path)
    plain = Plain(mine, table_rate=2.0, step_rate=300.0, dense_rate=0.1)
    assert plain.step.keys() == {"user", "item", "city", "scores"}
    start = {name: step.clone() for name, step in plain.step.items()}
    first_codes = {name: codes.clone() for name, codes in plain.codes.items()}
    mine.model.train()
    batches = _Batches(mine.reader.read(Position(0, 0), 1), mine.assignments)
    for number, batch in zip(range(4), mine.reader.read(Position(0, 0), 1), strict=False):
        plain.train(batch, number, passes)
        mine._train_step(batches)
        batches.trained()
    state = whole_state(mine)
    for name, step in plain.step.items():
        assert (step - start[name]).abs().max() > 0.01 * step.mean()
        assert not torch.equal(plain.codes[name], first_codes[name])
        torch.testing.assert_close(state[f"{name}.step"], step, rtol=1e-4, atol=0)
        # The equations' sums are in another order, so that a code may just fall on the other side.
        difference = (state[f"{name}.codes"].view(torch.int8) - plain.codes[name]).abs()
        assert difference.max() <= 1 and difference.count_nonzero() <= 2
    for key, value in mine.model.state_dict().items():
        if key.startswith("tables.") and key.endswith(".weight"):
            local = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
            torch.testing.assert_close(
                local, plain.values[key.split(".")[-2]], rtol=1e-3, atol=1e-5
            )
    network = mine.model.module.network.state_dict()
    for key, value in plain.network.state_dict().items():
        torch.testing.assert_close(network[key], value, rtol=1e-3, atol=1e-5)


def test_initial_codes_are_the_initial_rows_rounded_at_random(
    one_process: torch.device, data: Path, tmp_path: Path
):
    state = whole_state(trainer(quantised_job(data), tmp_path))
    precise = trainer(
        quantised_job(data, embedding__precision="fp32", embedding__tables__city__column_block=16),
        tmp_path,
    )
    weights = {
        key.split(".")[-2]: value.local_shards()[0].tensor
        for key, value in precise.model.state_dict().items()
        if key.startswith("tables.")
    }
    step = lsq_step(0.1, 8)
    for name in TABLES:
        assert (state[f"{name}.step"] == torch.tensor(step)).all()
        layout = Layout(len(weights[name]), 16, 0, 0, 0, 0, 0, table_key(name), 0, 0)
        noise = uniform(3, ASSIGNMENT, layout, torch.arange(len(weights[name])))
        codes = (weights[name] / torch.tensor(step) + noise).floor().clamp(-128, 127)
        assert torch.equal(state[f"{name}.codes"].view(torch.int8).float(), codes)


def fit(run: Path, job: Any) -> dict[str, Any]:
    mine = trainer(job, run)
    result = mine.fit()
    return {"state": whole_state(mine), "result": result, "plan": mine.plan}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_cut_in_two_ends_like_one(data: Path, tmp_path: Path, ranks: int):
    """With an accumulation of three batches, in whose midst the run is cut."""
    options = {
        "train__epochs": 1,
        "train__optimizer__accumulate": 3,
        "embedding__optimizer": {"name": "adam", "lr": 0.01},
        "train__optimizer__schedule": {"name": "linear", "warmup_steps": 5},
    }
    job = quantised_job(data, **options)
    whole = run_ranks(ranks, fit, tmp_path / "whole", job)[0]
    half = quantised_job(data, **options, train__checkpoint__every=10)
    run_ranks(ranks, fit, tmp_path / "cut", half)
    folder = tmp_path / "cut" / "checkpoints"
    (folder / "latest").write_text("step_000000010\n")
    resumed = run_ranks(ranks, fit, tmp_path / "cut", job)[0]
    assert_equal_state(resumed["state"], whole["state"])
    assert resumed["result"]["valid"] == whole["result"]["valid"]


@pytest.mark.parametrize("precision,bits", [("int8", 8), ("int4", 4), ("int2", 2)])
def test_bytes_are_those_of_the_formula_and_of_the_plan(
    data: Path, tmp_path: Path, precision: str, bits: int
):
    job = quantised_job(data, embedding__precision=precision, train__max_steps=2)
    found = run_ranks(2, fit, tmp_path, job)[0]
    rows = sum(table.rows for table in job.embedding.tables.values())
    moments = 4 * 2 * (1 + 2)  # two blocks: one of row-wise Adagrad, two of the steps' Adam
    bytes_of = found["result"]["embedding_bytes"]
    assert bytes_of == {"weights": rows * (16 * bits // 8 + 4 * 2), "optimizer": rows * moments}
    planned = plan_job(job, Hardware.cpu(1, 2, 2**30))
    total = sum(rank["bytes"] for rank in planned["ranks"])
    assert total == sum(bytes_of.values())
    shown = [float(line.split()[2]) for line in found["plan"].splitlines() if line[:5] == "rank "]
    assert sum(shown) == pytest.approx(total / 2**20, abs=0.02)


def test_steps_and_saturation_are_logged(data: Path, tmp_path: Path, capsys: Any):
    job = quantised_job(
        data, embedding__initial_step=1e-3, embedding__precision="int4", train__max_steps=2
    )
    run_ranks(2, fit, tmp_path, job)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    for record in (r for r in records if r["split"] == "train"):
        for name in TABLES:
            steps = [record[f"step_{kind}/{name}"] for kind in ("min", "mean", "max")]
            assert 0 < steps[0] <= steps[1] <= steps[2] < 0.01
            assert 0.9 < record[f"saturated/{name}"] <= 1


@pytest.mark.parametrize(
    "overrides,message",
    [
        (
            {"embedding__tables__city__column_block": 4},
            r"tables.city.column_block: got 4; .* multiple of 8",
        ),
        ({"embedding__tables__city__column_block": 24}, r"must divide the 16 columns"),
        (
            {"embedding__tables__country__sharding": "data_parallel"},
            r"tables.country.sharding: a data_parallel table .* choose table_wise",
        ),
        (
            {"embedding__optimizer": {"name": "adam", "lr": 0.1, "weight_decay": 0.1}},
            r"optimizer.weight_decay: got 0.1.* leave it out",
        ),
        (
            {"embedding__tables__city": {"rows": 50, "precision": "fp16", "step": "fixed"}},
            r"tables.city.step: is for int8, int4 and int2 tables, this one is fp16",
        ),
        (
            {"embedding__alpt": {"step_optimizer": {"name": "rowwise_adam", "lr": 0.1}}},
            r"step_optimizer: 'rowwise_adam' is not known",
        ),
    ],
)
def test_what_cannot_be_is_refused(data: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        quantised_job(data, **overrides)


def test_rows_for_every_process_or_a_refusal(data: Path):
    job = quantised_job(data, embedding__tables__country__sharding="row_wise")
    plan_job(job, Hardware.cpu(1, 10, 2**30))
    with pytest.raises(ValueError, match=r"country.sharding: row_wise .* choose table_wise"):
        plan_job(job, Hardware.cpu(1, 13, 2**30))


def test_another_cut_of_columns_does_not_load(data: Path, tmp_path: Path):
    run_ranks(1, fit, tmp_path, quantised_job(data, train__max_steps=1))
    for block, message in ((16, "column_block"), (8, "precision")):
        other = {"embedding__tables__user__column_block": block}
        if block == 8:
            other["embedding__tables__user__precision"] = "int4"
        with pytest.raises(AssertionError, match=rf"user.*{message}"):
            run_ranks(1, load, tmp_path, quantised_job(data, **other))


def load(run: Path, job: Any) -> None:
    trainer(job, run).checkpoints.load("latest")


def test_the_schedule_reaches_codes_and_steps(data: Path, tmp_path: Path):
    job = quantised_job(
        data,
        train__optimizer__schedule={"name": "constant", "warmup_steps": 10},
        train__pipeline="plain",
    )
    slow, normal = (run_ranks(1, rates_after, tmp_path, job, batches)[0] for batches in (0, 9))
    assert slow == pytest.approx([0.03, 2e-6])
    assert normal == pytest.approx([0.3, 2e-5])


def rates_after(folder: Path, job: Any, batches: int) -> list[float]:
    mine = trainer(job, folder)
    mine.optimizer.set_batches(batches)
    mine._train_step(_Batches(mine.reader.read(Position(0, 0), 1), mine.assignments))
    (kernel, *_) = mine.second_pass.collections[0].kernels()  # type: ignore[union-attr]
    assert kernel.number == batches
    step_optimizer = kernel.tables.step_optimizer
    assert step_optimizer is not None
    return [kernel.tables.optimizer.learning_rate, step_optimizer.learning_rate]


def test_warning_says_what_to_do(data: Path):
    specs = quantised_job(data).embedding.resolved()
    few, many = (CodeStatistics(0.01, 0.01, 0.01, share) for share in (0.01, 0.2))
    assert saturation_warning(specs["user"], few) is None
    line = saturation_warning(specs["user"], many)
    assert line is not None and "20% of the int8 codes of table 'user'" in line
    assert "\n" not in line and "step_optimizer.lr" in line
