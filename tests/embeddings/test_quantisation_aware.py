# SPDX-License-Identifier: Apache-2.0
"""fp32 tables that are trained to be quantised (LSQ), beside plain ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deltarec.data.batch import Position
from deltarec.embeddings.tables import lsq_step
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.small_job import small_job, write_small_data

AWARE = ("user", "item", "city", "tags")
"""An id, a sequence and its target, a column-wise table, an id list with a mean."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_small_data(folder)
    return folder


def job_of(data: Path, **overrides: Any) -> Job:
    return small_job(data, train__max_steps=10, **overrides)


def aware(data: Path, codes: str) -> Job:
    tables = {f"embedding__tables__{name}__quantisation_aware": codes for name in AWARE}
    return job_of(data, **tables)


def of_tables(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights by table, on one process."""
    found = {}
    for key, value in trainer.model.state_dict().items():
        if key.startswith("tables."):
            shards = value.local_shards() if hasattr(value, "local_shards") else None
            parts = [s.tensor for s in shards] if shards else [value]
            found[key.split(".")[-2]] = parts
    return found


@pytest.mark.parametrize("codes", ["int8", "int2"])
def test_the_model_sees_the_nearest_codes(one_process: Any, data: Path, tmp_path: Path, codes: str):
    """It is the plain model over tables that were rounded by hand."""
    bits = int(codes.removeprefix("int"))
    step = lsq_step(0.1, bits)
    seen, plain = (
        Trainer(job, RunFolder(tmp_path / name), torch.device("cpu"))
        for name, job in (("seen", aware(data, codes)), ("plain", job_of(data)))
    )
    weights = of_tables(seen)
    for name, parts in of_tables(plain).items():
        for mine, given in zip(parts, weights[name], strict=True):
            rounded = (given / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
            mine.detach().copy_(rounded if name in AWARE else given)
    wanted = plain.model.module.network.state_dict()
    steps = {k: v for k, v in seen.model.module.network.state_dict().items() if k not in wanted}
    assert set(steps) == {f"fake_quantisers.{name}.log_step" for name in AWARE}
    seen.model.module.network.load_state_dict(wanted | steps)
    for trainer in (seen, plain):
        trainer.model.eval()
    logits = [t.model(next(t.reader.read(Position(), 1)))[1][1] for t in (seen, plain)]
    torch.testing.assert_close(*logits)


def test_steps_are_learned(one_process: Any, data: Path, tmp_path: Path):
    trainer = Trainer(aware(data, "int8"), RunFolder(tmp_path), torch.device("cpu"))
    steps = trainer.model.module.network.fake_quantisers
    before = {name: steps[name].log_step.item() for name in AWARE}
    trainer.fit()
    assert all(steps[name].log_step.item() != value for name, value in before.items())


def test_what_cannot_be(data: Path):
    with pytest.raises(ValueError, match="give precision or quantisation_aware, not both"):
        job_of(
            data, embedding__tables__user__quantisation_aware="int8", embedding__precision="int4"
        )
    with pytest.raises(ValueError, match="quantisation_aware training uses the single rows of tab"):
        job_of(data, embedding__quantisation_aware="int8")
