# SPDX-License-Identifier: Apache-2.0
"""Any member of a role works with any member of the others."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import torch

from deltarec.balancing import BALANCERS
from deltarec.balancing.equal import Equal
from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.prepare import DATASETS
from deltarec.data.reader import Reader
from deltarec.data.schema import FEATURES
from deltarec.data.transforms import TRANSFORMS
from deltarec.distributed import process_group
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.tables import TABLE_OPTIMIZERS
from deltarec.job import Job
from deltarec.models import SCENARIO_MODULES, SEQUENCE_ENCODERS, TASK_HEADS, TRUNKS
from deltarec.models.ranking import ModelConfig, Network, RankingModel
from deltarec.optimizers import DENSE_OPTIMIZERS, SCHEDULES
from tests.small_job import small_job, write_small_data

LAYERS = {"hidden": [8], "dropout": 0.2}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sequence": {"mean": {}, "din": {**LAYERS, "norm": "batch"}},
    "trunk": {
        "mlp": {**LAYERS, "norm": "batch"},
        "wide_deep": LAYERS,
        "deepfm": LAYERS,
        "dcn": {**LAYERS, "norm": "layer"},
    },
    "scenario": {"none": {}, "towers": {**LAYERS, "norm": "layer"}},
    "heads": {
        "shared_bottom": LAYERS,
        "mmoe": {**LAYERS, "norm": "batch", "experts": 2, "tower": [8]},
    },
}
"""What each member is tried with; a new member has its line here."""


def choices() -> list[dict[str, dict[str, Any]]]:
    members = [[{"name": name, **o} for name, o in role.items()] for role in OPTIONS.values()]
    return [dict(zip(OPTIONS, chosen, strict=True)) for chosen in itertools.product(*members)]


@pytest.fixture(scope="module")
def job_and_batches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, list[Batch]]]:
    """A small job and two of its batches, the second one with padding."""
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    job = small_job(folder)
    reader = Reader(job.data.files("train"), job.data_schema, job.data.reader, 64, seed=0)
    batches = reader.read(Position(), 1)
    first, second = next(batches), next(batches)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    with process_group():
        yield job, [first, with_padding(second)]


def with_padding(batch: Batch) -> Batch:
    """Its last four samples made padding; their ids stay, which makes the tests harder."""
    batch.index[-4:], batch.mask[-4:] = -1, False
    batch.dense[-4:], batch.scenario[-4:] = 0, 0
    batch.num_samples -= 4
    return batch


def build(job: Job, chosen: Mapping[str, Any], bf16: bool) -> RankingModel:
    """The whole model, not sharded: plain tables of random rows."""
    torch.manual_seed(0)
    specs = job.embedding.resolved()
    tables = EmbeddingTables(job.data_schema, specs).to_empty(device="cpu")
    for table in tables.parameters():
        torch.nn.init.normal_(table, std=0.5)
    config = validate(ModelConfig, chosen, "test")
    network = Network(config, job.data_schema, specs, seed=0, bf16=bf16)
    return RankingModel(tables, network, Equal(Equal.Config(name="equal"), list(job.tasks)))


def test_all_members_are_tried():
    roles = (SEQUENCE_ENCODERS, TRUNKS, SCENARIO_MODULES, TASK_HEADS)
    for role, registry in zip(OPTIONS, roles, strict=True):
        assert OPTIONS[role].keys() == registry.keys(), role


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_every_combination_trains(job_and_batches: tuple[Job, list[Batch]], bf16: bool):
    """Two steps: the loss is finite, and every parameter has a finite gradient that is not zero."""
    job, batches = job_and_batches
    for chosen in choices():
        names = "/".join(part["name"] for part in chosen.values())
        model = build(job, chosen, bf16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches:
            optimizer.zero_grad()
            losses, (plain, logits) = model(batch)
            losses.sum().backward()
            optimizer.step()
            assert plain.isfinite().all() and logits.shape == (64, 2), names
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, f"{names}: {name} has no gradient"
                assert parameter.grad.isfinite().all(), f"{names}: {name}"
                if parameter.ndim == 2:  # a bias before a normalisation has none
                    assert parameter.grad.any(), f"{names}: the gradient of {name} is zero"


def test_bf16_is_near_fp32_and_reaches_the_encoders(job_and_batches: tuple[Job, list[Batch]]):
    job, batches = job_and_batches
    seen: list[torch.dtype] = []
    for chosen in choices():
        exact, rough = (build(job, chosen, bf16) for bf16 in (False, True))
        for encoder in rough.network.encoders.values():
            for layer in encoder.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
        with torch.no_grad():
            wanted, got = (model(batches[1])[1][1].float() for model in (exact, rough))
        error = (got - wanted).abs().max() / wanted.abs().max()
        assert 0 < error < 0.05, f"{chosen}: {error}"
    assert set(seen) == {torch.bfloat16}


def test_padding_and_the_rest_of_the_batch_change_no_sample(
    job_and_batches: tuple[Job, list[Batch]],
):
    """In evaluation a sample's logits are its own; what stands in padding rows reaches nothing."""
    job, (_, batch) = job_and_batches
    for chosen in choices():
        model = build(job, chosen, bf16=False)
        for training in (False, True):
            model.train(training)
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            results = []
            for filling in (0.0, 3.0):
                model.load_state_dict(buffers, strict=False)
                batch.dense[-4:], batch.labels[-4:] = filling, filling
                with torch.no_grad():
                    _, (losses, logits) = model(batch)
                results.append((losses, logits[:-4]))
            torch.testing.assert_close(results[1], results[0])


REGISTRIES: dict[str, tuple[Mapping[str, type[Any]], str]] = {
    "sequence encoders": (SEQUENCE_ENCODERS, "name"),
    "trunks": (TRUNKS, "name"),
    "scenario modules": (SCENARIO_MODULES, "name"),
    "task heads": (TASK_HEADS, "name"),
    "balancers": (BALANCERS, "name"),
    "dense optimizers": (DENSE_OPTIMIZERS, "name"),
    "schedules": (SCHEDULES, "name"),
    "table optimizers": (TABLE_OPTIMIZERS, "name"),
    "transforms": (TRANSFORMS, "name"),
    "features": (FEATURES, "kind"),
    "datasets": (DATASETS, "dataset"),
}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_members_name_is_its_key(registry: str):
    members, key = REGISTRIES[registry]
    for name, member in members.items():
        config = getattr(member, "Config", member)
        assert get_args(config.model_fields[key].annotation) == (name,)
