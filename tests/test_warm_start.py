# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from deltarec.checkpoint import TrainState
from deltarec.job import Job
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from deltarec.warm_start import WarmStartConfig, warm_start
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.small_job import CONFIG, small_job, write_small_data

DEVICE = torch.device("cpu")


def trained(run: Path, job: Job) -> dict[str, torch.Tensor]:
    """Three steps on each rank; all tables, whole."""
    trainer = Trainer(job, RunFolder(run), DEVICE)
    trainer.fit()
    return full_tables(trainer.model)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """Data, a run of two processes, its tables."""
    data = tmp_path_factory.mktemp("data")
    write_small_data(data)
    run = tmp_path_factory.mktemp("run")
    job = small_job(data, train__max_steps=3, data__valid=[])
    return data, run, run_ranks(2, trained, run, job)[0]


def renamed_job(data: Path, **overrides: object) -> Job:
    """The same with another sharding, the table `city` called `town`, and another trunk."""
    tables = {**CONFIG["embedding"]["tables"]}
    tables["town"] = {**tables.pop("city"), "sharding": "row_wise", "column_block": 8}
    tables["user"] = {"rows": 200, "sharding": "table_wise"}
    features = {**CONFIG["features"], "city": {"kind": "id", "table": "town"}}
    trunk = {"name": "mlp", "hidden": [16, 16], "norm": "batch"}
    return small_job(
        data,
        **{"features": features, "embedding__tables": tables, "model__trunk": trunk} | overrides,
    )


def start(job: Job, folder: Path, **config: object) -> tuple[Trainer, str]:
    trainer = Trainer(job, RunFolder(folder), DEVICE)
    warm = WarmStartConfig(**config)  # pyright: ignore
    return trainer, warm_start(warm, trainer.model, trainer.optimizer, trainer.watchdog)


@pytest.mark.usefixtures("one_process")
def test_weights_of_another_run_by_other_names(source: tuple, tmp_path: Path):
    data, run, tables = source
    trainer = Trainer(renamed_job(data), RunFolder(tmp_path), DEVICE)
    initial = {k: v.clone() for k, v in trainer.model.state_dict().items() if "trunk.mlp.1" in k}
    trainer, message = start(
        renamed_job(data), tmp_path, run=str(run), names={"tables.city": "tables.town"}
    )
    loaded = full_tables(trainer.model)
    for name, table in tables.items():
        assert torch.equal(loaded["town" if name == "city" else name], table), name
    assert "\n" not in message and f"{run}/checkpoints/step_000000003" in message
    missing, unexpected = message.split("missing there: ")[1].split("; unexpected there: ")
    assert "network.scenario.trunk.mlp.3.weight" in missing and "tables" not in missing
    assert "tables" not in unexpected
    for name, value in initial.items():
        if name.split("model.")[-1] in missing:
            assert torch.equal(trainer.model.state_dict()[name], value)


@pytest.mark.usefixtures("one_process")
def test_without_the_map_it_says_what_it_did_not_find(source: tuple, tmp_path: Path):
    data, run, _ = source
    _, message = start(renamed_job(data), tmp_path, run=str(run))
    missing, unexpected = message.split("missing there: ")[1].split("; unexpected there: ")
    assert "tables.town" in missing and "tables.city" in unexpected


@pytest.mark.usefixtures("one_process")
def test_optimizers_come_along_if_told_to(source: tuple, tmp_path: Path):
    data, run, _ = source
    job = small_job(data)
    folder = run / "checkpoints" / "step_000000003"
    resumed = Trainer(job, RunFolder(run), DEVICE)
    resumed.checkpoints.load("latest")
    expected = resumed.optimizer.combined.state_dict()["state"]
    without, _ = start(job, tmp_path, run=str(folder))
    trainer, message = start(job, tmp_path, run=str(folder), optimizer=True)
    assert message.endswith("missing there: nothing; unexpected there: nothing")
    for optimizer, equal in ((trainer.optimizer, True), (without.optimizer, False)):
        state = optimizer.combined.state_dict()["state"]
        same = [
            torch.equal(whole(value), whole(expected[name][key]))
            for name, values in state.items()
            for key, value in values.items()
        ]
        assert all(same) == equal
    assert trainer.state == TrainState()


def whole(value: torch.Tensor) -> torch.Tensor:
    shards = value.local_shards() if hasattr(value, "local_shards") else None  # pyright: ignore
    return torch.cat([s.tensor.flatten() for s in shards]) if shards is not None else value


@pytest.mark.usefixtures("one_process")
def test_a_run_begins_warm_and_resumes_its_own(source: tuple, tmp_path: Path, capsys):
    data, run, tables = source
    warm = {"run": str(run)}
    rate = {"name": "rowwise_adagrad", "lr": 1e-9}
    options = {"embedding__optimizer": rate, "train__warm_start": warm, "data__valid": []}
    trainer = Trainer(small_job(data, train__max_steps=1, **options), RunFolder(tmp_path), DEVICE)
    trainer.fit()
    torch.testing.assert_close(full_tables(trainer.model)["user"], tables["user"])
    assert capsys.readouterr().out.count("warm start from") == 1
    Trainer(small_job(data, train__max_steps=2, **options), RunFolder(tmp_path), DEVICE).fit()
    assert "warm start" not in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("overrides", "config", "message"),
    [
        ({}, {"run": "nowhere"}, "warm_start.run: nowhere/checkpoints: there is no latest"),
        ({}, {"checkpoint": "best"}, "there is no best checkpoint"),
        ({}, {"names": {"tables.town": "tables.x"}}, "nothing in the checkpoint begins with"),
        ({}, {"names": {"tables.city": "tables.user"}}, "two tensors would be called"),
        (
            {"embedding__tables__user__rows": 300},
            {},
            r"sizes differ: tables\.user is \(200, 8\) there, \(300, 8\) here$",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    source: tuple, tmp_path: Path, overrides: dict, config: dict, message: str
):
    data, run, _ = source
    with pytest.raises(ValueError, match=message):
        start(small_job(data, **overrides), tmp_path, **{"run": str(run)} | config)
