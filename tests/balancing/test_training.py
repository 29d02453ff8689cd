# SPDX-License-Identifier: Apache-2.0
"""What the trainer tells a method, keeps of it, and shows of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deltarec.conflict_plot import conflicts
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.embeddings.quantised_job import quantised_job
from tests.small_job import small_job, write_small_data

EPOCHS, EPOCH_STEPS = 4, 2


def logged(run: Path, data: Path, balance: dict[str, Any], steps: int) -> list[dict[str, float]]:
    """Train to a step, from the run's checkpoint if it has one; what was logged of training."""
    job = small_job(
        data,
        balance=balance,
        data__valid=[],
        train__batch_size=1000,
        train__epochs=EPOCHS,
        train__max_steps=steps,
    )
    Trainer(job, RunFolder(run), torch.device("cpu")).fit()
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kept = ("loss/", "weight/", "gradient_")
    return [{k: v for k, v in line.items() if k.startswith(kept)} for line in lines]


def test_epochs_are_told_and_what_was_learned_of_them_is_resumed(
    tmp_path: Path, one_process: torch.device
):
    write_small_data(tmp_path)
    dwa = {"name": "dwa"}
    whole = logged(tmp_path / "whole", tmp_path, dwa, EPOCHS * EPOCH_STEPS)
    logged(tmp_path / "parts", tmp_path, dwa, 5)
    assert logged(tmp_path / "parts", tmp_path, dwa, EPOCHS * EPOCH_STEPS) == whole
    weights = [line["weight/click"] for line in whole]
    assert weights[: 2 * EPOCH_STEPS] == [1.0] * 2 * EPOCH_STEPS
    assert weights[4] == weights[5] != 1.0 and weights[6] == weights[7] != weights[5]


def test_norms_and_cosines_are_logged(tmp_path: Path, one_process: torch.device):
    write_small_data(tmp_path)
    line = logged(tmp_path / "run", tmp_path, {"name": "gradnorm"}, 2)[-1]
    assert line["weight/click"] + line["weight/buy"] == pytest.approx(2)
    assert line["gradient_norm/click"] > 0
    assert -1 <= line["gradient_cosine/click/buy"] <= 1
    found = conflicts(tmp_path / "run")
    assert len(found["gradient_cosine/click/buy"]) == len(found["weight/buy"]) == 2
    picture = (tmp_path / "run" / "conflict.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_tensorboard_has_each_step_and_task(tmp_path: Path, one_process: torch.device):
    """Loss, weight, gradient norm and cosine, as the method saw them."""
    write_small_data(tmp_path)
    tasks = {"click": {}, "buy": {}, "also": {"label": "click"}}
    balance = {"name": "gradnorm", "lr": 0.1}
    job = small_job(tmp_path, balance=balance, tasks=tasks, data__valid=[], train__max_steps=3)
    trainer = Trainer(job, RunFolder(tmp_path / "run"), torch.device("cpu"))
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    weigh = trainer.balancer.weights  # pyright: ignore

    def watched(gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        weights = weigh(gram, losses)
        seen.append((losses.clone(), weights.clone(), gram.clone()))
        return weights

    trainer.balancer.weights = watched  # pyright: ignore
    trainer.fit()
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    names, expected = list(tasks), {}
    losses, weights, grams = (torch.stack(found) for found in zip(*seen, strict=True))
    norms = grams.diagonal(dim1=1, dim2=2).sqrt()
    for i, name in enumerate(names):
        expected[f"loss/{name}"] = losses[:, i]
        expected[f"weight/{name}"] = weights[:, i]
        expected[f"gradient_norm/{name}"] = norms[:, i]
        for j, other in enumerate(names[:i]):
            cosine = grams[:, i, j] / norms[:, i] / norms[:, j]
            expected[f"gradient_cosine/{other}/{name}"] = cosine
    assert len(expected) == 12 and len(seen) == 3
    for tag, values in expected.items():
        found = events.Scalars(f"train/{tag}")
        assert [event.step for event in found] == [1, 2, 3], tag
        assert [event.value for event in found] == pytest.approx(values.tolist(), rel=1e-5), tag


@pytest.mark.parametrize("name", ["graddrop", "metabalance", "adatask", "pmtrec"])
def test_inner_products_for_the_log_alone_are_made_at_logged_steps(
    tmp_path: Path, one_process: torch.device, name: str
):
    write_small_data(tmp_path)
    scores = {"kind": "ids", "column": "tags", "table": "scores"}
    sgd = {"name": "sgd", "lr": 0.01}
    job = small_job(
        tmp_path,
        balance={"name": name},
        data__valid=[],
        features__scores=scores,
        embedding__optimizer=sgd,
        embedding__tables__country__sharding="table_wise",
        train__optimizer__dense=sgd,
        train__max_steps=5,
        train__log_every=2,
    )
    trainer = Trainer(job, RunFolder(tmp_path / "run"), torch.device("cpu"))
    note, made = trainer.balancer.note, []

    def watched(weights: torch.Tensor | None = None, gram: torch.Tensor | None = None) -> None:
        made.append(gram is not None)
        note(weights, gram)

    trainer.balancer.note = watched
    trainer.fit()
    assert made == [False, True, False, True, True]
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert ["gradient_cosine/click/buy" in line for line in lines] == [True] * 3


def test_without_gradients_by_task_there_is_no_picture_of_conflicts(
    tmp_path: Path, one_process: torch.device
):
    write_small_data(tmp_path)
    logged(tmp_path / "run", tmp_path, {"name": "equal"}, 1)
    assert not (tmp_path / "run" / "conflict.png").exists()


@pytest.mark.parametrize(
    "balance", [{"name": "rlw"}, {"name": "dwa", "period": 1}, {"name": "mgda"}]
)
def test_a_second_pass_has_the_weights_of_the_first(
    tmp_path: Path, one_process: torch.device, balance: dict[str, Any]
):
    """And leaves no trace in the method: a step of two passes counts once."""
    write_small_data(tmp_path)
    job = quantised_job(tmp_path, balance=balance, train__max_steps=4)
    trainer = Trainer(job, RunFolder(tmp_path / "run"), torch.device("cpu"))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    again = trainer.balancer.again

    def watched(losses: torch.Tensor) -> torch.Tensor:
        before = {key: value.clone() for key, value in trainer.balancer.state_dict().items()}
        weighted = again(losses)
        after = trainer.balancer.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        weights = torch.tensor([trainer.balancer.logged()[f"weight/{t}"] for t in job.tasks])
        seen.append((weighted.detach(), losses.detach() * weights))
        return weighted

    trainer.balancer.again = watched
    trainer.fit()
    assert len(seen) == 4
    for weighted, wanted in seen:
        torch.testing.assert_close(weighted, wanted, rtol=1e-5, atol=1e-7)
