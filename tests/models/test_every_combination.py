# SPDX-License-Identifier: Apache-2.0
"""Any member of a role works with any member of the others."""

import copy
import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from deltarec.assembly import build_model
from deltarec.balancing import BALANCERS
from deltarec.config import validate
from deltarec.data.batch import Batch, Position
from deltarec.data.prepare import DATASETS
from deltarec.data.reader import Reader
from deltarec.data.schema import FEATURES
from deltarec.data.transforms import TRANSFORMS
from deltarec.distributed import process_group
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.embeddings.second_pass import SecondPass
from deltarec.embeddings.tables import TABLE_OPTIMIZERS
from deltarec.job import Job
from deltarec.models import (
    ALIGNMENT_LOSSES,
    GRAPH_ENCODERS,
    PAIR_MODELS,
    SCENARIO_MODULES,
    SCORERS,
    SEQUENCE_ENCODERS,
    TASK_HEADS,
    TEXT_ADAPTORS,
    TRUNKS,
)
from deltarec.models.losses import TaskLosses
from deltarec.models.network import ModelConfig, Network
from deltarec.optimizers import DENSE_OPTIMIZERS, SCHEDULES
from tests.small_job import small_job, write_small_data

LAYERS = {"hidden": [8], "dropout": 0.2}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sequence": {"mean": {}, "din": {**LAYERS, "norm": "batch"}, "tem4ctr": LAYERS},
    "trunk": {
        "mlp": {**LAYERS, "norm": "batch"},
        "wide_deep": LAYERS,
        "deepfm": LAYERS,
        "dcn": {**LAYERS, "norm": "layer"},
    },
    "scenario": {
        "none": {},
        "towers": {**LAYERS, "norm": "layer"},
        "star": LAYERS,
        "pepnet": {"gate": 8},
        "sar_net": {**LAYERS, "shared": 2, "specific": 2, "expert": 4},
        "adasparse": {"growth": 0.0},  # each step of training would change the next one
        "m3oe": {**LAYERS, "experts": 2},
        "hamur": {"rank": 4, "bottleneck": 8, "hyper": [8]},
        "hierrec": {**LAYERS, "implicit": 2, "bottleneck": 4},
    },
    "heads": {
        "shared_bottom": LAYERS,
        "omoe": {**LAYERS, "experts": 2, "tower": [8]},
        "mmoe": {**LAYERS, "norm": "batch", "experts": 2, "tower": [8]},
        "ple": {**LAYERS, "levels": 2, "experts": 1, "shared_experts": 1, "tower": [8]},
        "cross_stitch": {**LAYERS, "norm": "layer"},
        "adatt": {**LAYERS, "levels": 2, "shared_experts": 1, "tower": [8]},
        "dbmtl": {**LAYERS, "experts": 2, "expert": [8], "relation": [8]},
        "esmm": LAYERS,
        "multi_ipw": LAYERS,
        "multi_dr": {**LAYERS, "norm": "batch"},
        "escm2": {**LAYERS, "norm": "layer", "estimator": "dr"},
        "aitm": LAYERS,
    },
}
"""What each member is tried with; a new member has its line here."""


DETACHED = ("multi_ipw", "multi_dr", "escm2")
"""Heads whose losses have divisors without gradients: a step need not make them smaller."""


Chosen = dict[str, dict[str, Any]]
Data = tuple[Job, Batch, list[Any]]
Mixed = tuple[Job, Any]


def choices(options: Mapping[str, Mapping[str, Any]] = OPTIONS) -> list[Chosen]:
    members = [[{"name": name, **o} for name, o in role.items()] for role in options.values()]
    return [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*members)]


def product_of_three() -> list[Chosen]:
    """Every trunk with every scenario module and every task heads; sequences come before them."""
    return choices({**OPTIONS, "sequence": {"mean": OPTIONS["sequence"]["mean"]}})


def covering() -> list[Chosen]:
    """So many combinations that every two members meet."""
    shuffled = choices()
    random.Random(0).shuffle(shuffled)
    met: set[tuple[str, str]] = set()
    kept = []
    for chosen in shuffled:
        names = [f"{role} {part['name']}" for role, part in chosen.items()]
        pairs = set(itertools.combinations(names, 2))
        if not pairs <= met:
            met |= pairs
            kept.append(chosen)
    return kept


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    """A small job, one of its batches, with padding, and the vectors of random tables."""
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    job = small_job(folder)
    reader = Reader(job.data.files("train"), job.data_schema, job.data.reader, 64, seed=0)
    batches = reader.read(Position(), 1)
    batch = with_padding(next(batches))
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    tables = EmbeddingTables(job.data_schema, job.embedding.resolved()).to_empty(device="cpu")
    for table in tables.parameters():
        torch.nn.init.normal_(table, std=0.5)
    with process_group(threads=1):
        with torch.no_grad():
            vectors = tables(batch)
        yield job, batch, vectors


@pytest.fixture(scope="module")
def mixed(data: Data) -> Mixed:
    """The job with half of its tables in int8, and its model."""
    tables = {
        "user": {"precision": "int8"},
        "item": {"precision": "int8"},
        "tags": {"precision": "int8"},
        "country": {"sharding": "table_wise"},
    }
    settings: dict[str, Any] = {
        f"embedding__tables__{table}__{key}": value
        for table, options in tables.items()
        for key, value in options.items()
    }
    # Not Adagrad, whose state would have each combination move less than the one before.
    settings["embedding__optimizer"] = {"name": "sgd", "lr": 100.0}
    job = small_job(Path(data[0].data.source), **settings)
    return job, build_model(job, torch.device("cpu")).model


def with_padding(batch: Batch) -> Batch:
    """Its last four samples made padding; their ids stay, which makes the tests harder."""
    batch.index[-4:], batch.mask[-4:] = -1, False
    batch.dense[-4:], batch.scenario[-4:] = 0, 0
    batch.num_samples -= 4
    return batch


class Dense:
    """What stands right of the tables: network and losses on looked-up vectors that stay."""

    def __init__(self, job: Job, chosen: Chosen, bf16: bool = False) -> None:
        torch.manual_seed(0)
        config = validate(ModelConfig, chosen, "test")
        specs = job.embedding.resolved()
        self.network = Network(config, job.data_schema, specs, seed=0, bf16=bf16)
        self.losses = TaskLosses(job.tasks, self.network.heads.losses)

    def __call__(self, batch: Batch, vectors: list[Any]) -> tuple[Tensor, Tensor]:
        """Losses `[T]` and logits `[B, T]`."""
        columns = self.network(batch, vectors)
        return self.losses(columns, batch), columns[:, :2]


@pytest.mark.parametrize("role", OPTIONS)
def test_a_name_alone_is_enough(role: str):
    """So that two words of a file change, or of `--grid model.heads.name=[…]`."""
    members = {"sequence": SEQUENCE_ENCODERS, "trunk": TRUNKS}
    members |= {"scenario": SCENARIO_MODULES, "heads": TASK_HEADS}
    for name, member in members[role].items():
        validate(member.Config, {"name": name}, role)


def test_all_members_are_tried():
    roles = (SEQUENCE_ENCODERS, TRUNKS, SCENARIO_MODULES, TASK_HEADS)
    for role, registry in zip(OPTIONS, roles, strict=True):
        assert OPTIONS[role].keys() == registry.keys(), role


def test_every_combination_trains(data: Data, mixed: Mixed):
    """By one step with both passes of ALPT, on tables in fp32 and in int8; the step of the dense
    parameters alone makes the batch's loss smaller.

    Every dense parameter has a finite gradient that is not zero; all tables, codes and steps move.
    """
    (_, batch, _), (job, model) = data, mixed
    tables = {
        name: value.local_shards()[0].tensor
        for name, value in model.state_dict().items()
        if name.startswith("tables.")
    }
    initial = {name: tensor.clone() for name, tensor in tables.items()}
    second_pass = SecondPass(model)
    grown = []
    for chosen in product_of_three():
        names = "/".join(part["name"] for part in chosen.values())
        dense = Dense(job, chosen)
        model.module.network, model.module.losses = dense.network, dense.losses
        for name, tensor in tables.items():
            tensor.copy_(initial[name])
        vectors = model.module.tables(batch)
        losses, logits = dense(batch, vectors)
        losses.sum().backward()
        check_gradients(dense.network, names)
        second_pass(batch)
        assert losses.isfinite().all() and logits.shape == (64, 2), names
        with torch.no_grad():
            for parameter in dense.network.parameters():
                parameter -= 0.01 * parameter.grad
            after = dense(batch, vectors)[0]
        if chosen["heads"]["name"] not in DETACHED:
            grown += [names] * bool(after.sum() >= losses.sum())
        for name, tensor in tables.items():
            assert not torch.equal(tensor, initial[name]), f"{names}: {name} stands still"
            assert tensor.isfinite().all(), f"{names}: {name}"
            assert not name.endswith(".step") or tensor.min() > 0, f"{names}: {name}"
    assert not grown, f"the loss has grown: {grown}"


def test_every_two_members_train_in_bf16(data: Data):
    job, batch, vectors = data
    for chosen in covering():
        names = "/".join(part["name"] for part in chosen.values())
        model = Dense(job, chosen, bf16=True)
        losses, logits = model(batch, vectors)
        losses.sum().backward()
        assert losses.isfinite().all() and logits.shape == (64, 2), names
        check_gradients(model.network, names)


def check_gradients(network: Network, names: str) -> None:
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{names}: {name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{names}: {name}"
        if parameter.ndim >= 2:  # a bias before a normalisation has none
            assert parameter.grad.any(), f"{names}: the gradient of {name} is zero"


def test_bf16_is_near_fp32_and_reaches_the_encoders(data: Data):
    job, batch, vectors = data
    seen: list[torch.dtype] = []
    for chosen in covering():
        exact, rough = (Dense(job, chosen, bf16) for bf16 in (False, True))
        for encoder in rough.network.encoders.values():
            for layer in encoder.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
        wanted, got = (model(batch, vectors)[1].float().sigmoid() for model in (exact, rough))
        error = (got - wanted).abs().max()
        assert 0 < error < 0.0125, f"{chosen}: {error}"  # 0.05 of a logit
    assert set(seen) == {torch.bfloat16}


def test_padding_changes_no_sample(data: Data):
    """In training neither: what stands in padding rows reaches nothing."""
    job, original, vectors = data
    batch = copy.deepcopy(original)
    for chosen in covering():
        model = Dense(job, chosen)
        for training in (False, True):
            model.network.train(training)
            results = []
            for filling in (0.0, 3.0):
                batch.dense[-4:], batch.labels[-4:] = filling, filling
                losses, logits = model(batch, vectors)
                results.append((losses, logits[:-4]))
            torch.testing.assert_close(results[1], results[0])


def test_in_evaluation_a_samples_logits_are_its_own(data: Data):
    """Whatever the dense features and the scenarios of the others; after a step of training, for
    running statistics that are not those of the start."""
    job, original, vectors = data
    batch, half = copy.deepcopy(original), slice(None, None, 2)
    others = torch.ones(64, dtype=torch.bool)
    others[half] = False
    for chosen in covering():
        model = Dense(job, chosen)
        model(original, vectors)
        model.network.eval()
        results = []
        for change in (0.0, 1.0):
            batch.dense[others] = original.dense[others] + change
            batch.scenario[others] = (original.scenario[others] + int(change)) % 2
            results.append(model(batch, vectors)[1])
        torch.testing.assert_close(results[1][half], results[0][half])
        assert not torch.equal(results[1], results[0])


REGISTRIES: dict[str, tuple[Mapping[str, type[Any]], str]] = {
    "text adaptors": (TEXT_ADAPTORS, "name"),
    "sequence encoders": (SEQUENCE_ENCODERS, "name"),
    "trunks": (TRUNKS, "name"),
    "scenario modules": (SCENARIO_MODULES, "name"),
    "task heads": (TASK_HEADS, "name"),
    "alignment losses": (ALIGNMENT_LOSSES, "name"),
    "scorers": (SCORERS, "name"),
    "graph encoders": (GRAPH_ENCODERS, "name"),
    "pair models": (PAIR_MODELS, "name"),
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
