# SPDX-License-Identifier: Apache-2.0
"""Every text adaptor with every sequence encoder and trunk; and what a job of text can be."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.assembly import check
from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.embeddings.collections import EmbeddingTables, embedded
from deltarec.job import Job
from deltarec.models import SEQUENCE_ENCODERS, TEXT_ADAPTORS, TRUNKS
from deltarec.models.losses import TaskLosses
from deltarec.models.network import ModelConfig, Network
from tests.models.test_every_combination import OPTIONS, check_gradients, with_padding
from tests.small_job import write_small_data
from tests.text.tiny import save_tiny_encoder
from tests.text_job import CODES, text_job, write_vectors

ADAPTORS: dict[str, dict[str, Any]] = {
    "mlp": {"dim": 8, "hidden": [8], "dropout": 0.2, "norm": "batch"},
    "hybrid_experts": {"hidden": [8, 8], "dropout": 0.2},
    "whitened_mixture": {"dim": 8, "experts": 3},
    "semantic_ids": {"dim": 8, "size": CODES["size"]},
    "language_model": {"dim": 8, "lora": {"rank": 2}},
}
Data = dict[bool, tuple[Job, Batch, list[Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    write_vectors(folder)
    save_tiny_encoder(folder / "encoder")
    return folder


def code_job(folder: Path, **overrides: Any) -> Job:
    """The job of text on the codes of items."""
    whole = text_job(folder).model_dump(mode="json", exclude_none=True)
    tables = whole["embedding"]["tables"]
    frozen = {"source": str(folder / "item_codes"), "key": "id", "column": "codes"}
    tables["item_text"] |= {"dim": CODES["levels"], "frozen": frozen}
    tables.pop("user_text")
    whole["features"].pop("user_text")
    adaptor = {"name": "semantic_ids", **ADAPTORS["semantic_ids"]}
    options = {"features": whole["features"], "embedding__tables": tables, "model__text": adaptor}
    return text_job(folder, **(options | overrides))


@pytest.fixture(scope="module")
def data(folder: Path) -> Iterator[Data]:
    """A batch with padding and the vectors of random tables; with codes too."""
    found = {}
    for codes in (False, True):
        job = code_job(folder) if codes else text_job(folder)
        reader = Reader(job.data.files("train"), job.data_schema, job.data.reader, 64, seed=0)
        batches = reader.read(Position(), 1)
        batch = with_padding(next(batches))
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        torch.manual_seed(0)
        tables = EmbeddingTables(job.data_schema, job.embedding.resolved()).to_empty(device="cpu")
        for name, table in tables.named_parameters():
            torch.nn.init.normal_(table, std=0.5)
            if codes and "item_text" in name:
                table.data.random_(0, CODES["size"] + 1)
        with torch.no_grad():
            found[codes] = job, batch, tables(batch)
    yield found


@pytest.mark.parametrize("adaptor", ADAPTORS)
def test_it_goes_with_every_encoder_and_trunk(
    folder: Path, data: Data, adaptor: str, one_process: Any
):
    """Gradients reach every parameter, in bf16 too; padding and the batch change no sample."""
    job, batch, vectors = data[TEXT_ADAPTORS[adaptor].reads_codes]
    options = {"name": adaptor, **ADAPTORS[adaptor]}
    if adaptor == "language_model":
        options["model"] = str(folder / "encoder")
    for encoder, trunk in itertools.product(SEQUENCE_ENCODERS, TRUNKS):
        tree = job.model.model_dump(mode="json") | {
            "text": options,
            "sequence": {"name": encoder, **OPTIONS["sequence"][encoder]},
            "trunk": {"name": trunk, **OPTIONS["trunk"][trunk]},
        }
        config = validate(ModelConfig, tree, "test")
        torch.manual_seed(0)
        specs = job.embedding.resolved()
        network = Network(config, job.data_schema, specs, seed=0, bf16=trunk == "dcn")
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):  # of LoRA: at zero nothing reaches the other factor
                torch.nn.init.normal_(parameter)
        columns = network(batch, vectors)
        losses = TaskLosses(job.tasks, network.heads.losses)(columns, batch)
        losses.sum().backward()
        assert losses.isfinite().all()
        check_gradients(network, f"{adaptor}/{encoder}/{trunk}")
        assert torch.equal(network(batch, vectors), columns), "the same sample, the same draws"


def test_samples_go_without_an_id(folder: Path, data: Data, one_process: Any):
    """The id's vector is zero in training, for some samples; and there again in evaluation."""
    _, batch, vectors = data[False]
    schema = text_job(folder, features__item__dropout=0.5).data_schema
    job = text_job(folder)
    torch.manual_seed(0)
    network = Network(job.model, schema, job.embedding.resolved(), seed=0)
    place = list(embedded(schema, vectors, batch, network.fake_quantisers).pooled).index("item")
    seen: list[torch.Tensor] = []
    network.scenario.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].vectors[place])
    )
    network(batch, vectors)
    network.eval()(batch, vectors)
    trained, evaluated = seen
    dropped = (trained == 0).all(dim=1)
    assert 0.2 < dropped.double().mean() < 0.8
    assert torch.equal(trained[~dropped], evaluated[~dropped]) and evaluated.all()


def test_all_adaptors_are_tried():
    assert ADAPTORS.keys() == TEXT_ADAPTORS.keys()


def test_codes_past_the_adaptors_are_refused(folder: Path):
    check(code_job(folder))
    with pytest.raises(ValueError, match=r"size: 5, but codes of .*item_text go up to 7; take"):
        check(code_job(folder, model__text__size=5))
