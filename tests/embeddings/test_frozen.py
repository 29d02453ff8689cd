# SPDX-License-Identifier: Apache-2.0
"""Tables of vectors that are not trained: what they hold, and that nothing moves them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from deltarec.assembly import check
from deltarec.checkpoint import chosen
from deltarec.data.files import find
from deltarec.data.scoring import Input
from deltarec.predict import predict
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.distributed.test_any_number_of_processes import assert_equal_losses, train
from tests.embeddings.quantised_job import whole_state
from tests.small_job import write_small_data
from tests.text_job import DIM, text_job, vectors_of, write_lists, write_vectors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    write_vectors(folder)
    return folder


def table(name: str, key: str) -> str:
    return f"embedding__tables__{name}__{key}"


def dequantised(state: dict[str, torch.Tensor], name: str, bits: int) -> torch.Tensor:
    """A quantised table of codes that are not packed, or packed by two."""
    codes = state[f"{name}.codes"]
    if bits == 4:
        codes = torch.stack([codes << 4, codes & 0xF0], dim=2).flatten(1)
        return (codes.view(torch.int8) >> 4)[:, :DIM] * state[f"{name}.step"]
    return codes.view(torch.int8) * state[f"{name}.step"]


@pytest.mark.parametrize(
    "precision,largest_error",
    [("fp32", 0.0), ("fp16", 0.0), ("int8", 0.5 / 127), ("int4", 0.5 / 7)],
)
def test_rows_are_the_files_and_stay(
    data: Path, tmp_path: Path, one_process: Any, precision: str, largest_error: float
):
    """Errors are shares of a row's largest value: half a step."""
    settings = {table(f"{n}_text", "precision"): precision for n in ("item", "user")}
    job = text_job(data, train__max_steps=12, data__valid=[], **settings)
    trainer = Trainer(job, RunFolder(tmp_path), one_process)

    def tables() -> dict[str, torch.Tensor]:
        found = whole_state(trainer)
        return {name: tensor.clone() for name, tensor in found.items()}

    before = tables()
    for name, rows in (("item", 100), ("user", 200)):
        wanted = torch.from_numpy(vectors_of(data, name, rows))
        key = f"{name}_text"
        got = before.get(f"{key}.weight")
        if precision.startswith("int"):
            got = dequantised(before, key, int(precision[3:]))
        assert got is not None
        bound = largest_error * wanted.abs().amax(1, keepdim=True) * (1 + 1e-5)
        assert ((got.float() - wanted).abs() <= bound).all(), name
    result = trainer.fit()
    after = tables()
    for name, tensor in before.items():
        moved = not torch.equal(after[name], tensor)
        assert moved != ("_text." in name), name
    state = [key for key in after if "_text." in key]
    assert len(state) == (4 if precision.startswith("int") else 2), "no state of an optimiser"
    assert result["steps"] == 12


def test_it_learns_from_the_vectors(data: Path, tmp_path: Path, one_process: Any):
    """Clicks are likelier for even ids, which the vectors tell from odd ones."""
    whole = text_job(data).model_dump(mode="json", exclude_none=True)
    kept = ("item_text", "user_text", "read")
    job = text_job(
        data,
        features={name: whole["features"][name] for name in kept},
        embedding__tables={name: whole["embedding"]["tables"][name] for name in kept[:2]},
        train__epochs=6,
    )
    result = Trainer(job, RunFolder(tmp_path), one_process).fit()
    assert result["valid"]["click"]["all"]["auc"] > 0.6


NEW = (13, 110)
"""Item 13 had no vector; 110 is past the table that the first run had."""


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_vectors_of_new_items_reach_a_trained_model(
    tmp_path: Path, one_process: Any, precision: str
):
    """What the files hold now, and not what the checkpoint has, is in every job that goes on."""
    write_small_data(tmp_path)
    write_vectors(tmp_path)
    settings = {table("item_text", "precision"): precision, "train__max_steps": 3}
    job = text_job(tmp_path, data__valid=[], **settings)
    Trainer(job, RunFolder(tmp_path / "run"), one_process).fit()
    checkpoint = chosen(tmp_path / "run/checkpoints", "latest")
    rows = pq.read_table(tmp_path / "valid")
    of_it = rows["item"].to_numpy() == 13
    beside_it = of_it | [13 in seen for seen in rows["history"].to_pylist()]

    def scores(folder: str) -> np.ndarray:
        source = Input(job.data_schema, find(str(tmp_path), ["valid"]), ["item"], 100)
        predict(job, source, checkpoint, tmp_path / folder, one_process)
        return pq.read_table(tmp_path / folder)["score_click"].to_numpy()

    before = scores("before")
    vectors = np.random.default_rng(1).normal(size=(2, DIM)).astype(np.float16)
    write_lists(tmp_path / "item_text/2.parquet", NEW[:1], vectors[:1])
    with pytest.raises(ValueError, match="holds predictions of another vectors"):
        scores("before")
    moved = scores("after") != before
    assert moved[of_it].all() and of_it.any() and not moved[~beside_it].any()

    def held(trainer: Trainer, rows: tuple[int, ...]) -> torch.Tensor:
        state = whole_state(trainer)
        quantised = precision == "int8"
        found = dequantised(state, "item_text", 8) if quantised else state["item_text.weight"]
        return found[list(rows)]

    bound: Any = {"rtol": 0, "atol": 0.5 / 127 * 4 if precision == "int8" else 0.0}
    wanted = torch.from_numpy(vectors).float()
    more = text_job(tmp_path, data__valid=[], **(settings | {"train__max_steps": 4}))
    resumed = Trainer(more, RunFolder(tmp_path / "run"), one_process)
    resumed.fit()
    assert resumed.state.step == 4
    torch.testing.assert_close(held(resumed, NEW[:1]), wanted[:1], **bound)

    write_lists(tmp_path / "item_text/3.parquet", NEW[1:], vectors[1:])
    settings[table("item_text", "rows")] = 120
    warm = {"train__warm_start": {"run": str(tmp_path / "run")}}
    started = Trainer(
        text_job(tmp_path, data__valid=[], **settings, **warm),
        RunFolder(tmp_path / "warm"),
        one_process,
    )
    started.fit()
    torch.testing.assert_close(held(started, NEW), wanted, **bound)


@pytest.mark.parametrize("balance", [{"name": "metabalance"}, {"name": "pcgrad"}])
def test_balancing_by_gradients_leaves_them_out(
    data: Path, tmp_path: Path, one_process: Any, balance: dict[str, Any]
):
    job = text_job(data, balance=balance, train__max_steps=3, data__valid=[])
    trainer = Trainer(job, RunFolder(tmp_path), one_process)
    assert trainer.fit()["steps"] == 3


def test_any_sharding_on_any_ranks_gives_the_same(data: Path, tmp_path: Path):
    """Frozen tables of every sharding and precision beside trained ones, ALPT's second pass too."""
    features = text_job(data).model_dump(mode="json")["features"]
    tables = text_job(data).model_dump(mode="json", exclude_none=True)["embedding"]["tables"]
    shardings = {
        "a": {"sharding": "row_wise", "precision": "fp16"},
        "b": {"sharding": "column_wise", "column_block": 4},
        "c": {"sharding": "data_parallel"},
        "d": {"sharding": "row_wise", "precision": "int8"},
        "e": {"sharding": "table_wise", "precision": "int4"},
    }
    more = {name: {**tables["user_text"], **options} for name, options in shardings.items()}
    pooled = {name: {"kind": "id", "column": "user"} for name in more}
    pooled["d"] = {"kind": "ids", "column": "tags", "pooling": "mean"}
    tables["item_text"] |= {"sharding": "row_wise", "precision": "int8"}
    tables["item"] |= {"precision": "int8", "step": "learned"}
    job = text_job(
        data,
        features=features | pooled,
        embedding__tables=tables | more,
        data__valid=[],
        train__max_steps=8,
    )
    runs = [run_ranks(ranks, train, tmp_path, job)[0] for ranks in (1, 2)]
    assert_equal_losses(runs, tolerance=1e-4)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({table("item_text", "dim"): 8}, "has lists of 12, .*item_text has dim 8; set dim to 12"),
        ({table("item_text", "frozen__column"): "text"}, "column 'text' is missing"),
        ({table("item_text", "frozen__key"): "vector"}, "'vector' must be an integer"),
        ({table("item_text", "frozen__source"): "nowhere"}, "no file matches"),
        ({table("item_text", "init_std"): 0.1}, "init_std: is for tables that are trained"),
        ({table("item", "rows"): 100, "model__text": {"name": "semantic_ids", "size": 7},
          table("item_text", "precision"): "fp16"}, "rounds the codes"),
        ({"model__text": {"name": "hybrid_experts"},
          table("user_text", "dim"): 8}, "hybrid_experts shares experts among tables of one width"),
    ],
)  # fmt: skip
def test_jobs_that_cannot_be(data: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check(text_job(data, **overrides))


def test_text_without_frozen_tables(data: Path):
    from tests.small_job import small_job

    with pytest.raises(ValueError, match=r"model.text: is for frozen tables"):
        small_job(data, model__text={"name": "mlp"})


@pytest.mark.parametrize(
    "keys,change,message",
    [
        ([0, 100], 0.0, "id 100 is past the table's 100 rows"),
        ([-1, 0], 0.0, "id -1 is past"),
        ([7, 7], 0.0, "id 7 is there twice"),
        ([7, 8], np.nan, "not finite"),
    ],
)
def test_files_that_cannot_be(
    data: Path, tmp_path: Path, one_process: Any, keys: list[int], change: float, message: str
):
    vectors = np.zeros((2, DIM), np.float32)
    vectors[1, 3] = change
    write_lists(tmp_path / "bad/0.parquet", keys, vectors)
    job = text_job(data, **{table("item_text", "frozen__source"): str(tmp_path / "bad")})
    with pytest.raises(ValueError, match=message):
        Trainer(job, RunFolder(tmp_path / "run"), one_process)
