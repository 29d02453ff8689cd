# SPDX-License-Identifier: Apache-2.0
"""Ranks among all items or drawn ones, against a plain reference, on any number of ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from deltarec import retrieval
from deltarec.metrics.evaluation import Values
from deltarec.models.roles import Fields
from deltarec.retrieval import Retrieval
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.layers.test_graph import dense
from tests.models.test_graphs import JOB as GRAPH_JOB
from tests.models.test_graphs import cigcn_by_hand
from tests.pair_job import ITEMS, USERS, pair_job, write_pair_data

AT = [3, 10]


def job_of(data: Path, **ranking: Any) -> Any:
    return pair_job(
        data,
        data__valid=["valid"],
        data__test=["test"],
        tasks__listen__ranking={"at": AT, **ranking},
        train__eval_batch_size=37,
    )


def trainer_of(folder: Path, job: Any) -> Trainer:
    return Trainer(job, RunFolder(folder / "run"), torch.device("cpu"))


def evaluate(folder: Path, job: Any, scale: float = 1.0, split: Any = "test") -> Values:
    """Of the initial weights times `scale`."""
    trainer = trainer_of(folder, job)
    for value in trainer.model.state_dict().values() if scale != 1 else ():
        for shard in value.local_shards():
            shard.tensor.mul_(scale)
    result = trainer.evaluator.evaluate(split)
    for other in job.tasks.keys() - {"listen"}:
        assert result[other]["all"] == {**dict.fromkeys(job.metrics(other)), "n": 0}
    return result["listen"]["all"]


def pairs_of(data: Path, split: str) -> list[tuple[int, int]]:
    rows = pq.read_table(data / split).to_pylist()
    return [(r["user"], r["item"]) for r in rows if None not in (r["user"], r["item"])]


def scores_of(folder: Path, data: Path) -> torch.Tensor:
    tables = full_tables(trainer_of(folder, job_of(data)).model)
    return (tables["user"].double() @ tables["item"].double().T).float()


def scores_over_graphs(folder: Path, data: Path, job: Any) -> torch.Tensor:
    """By dense matrices, and each pair by itself."""
    trainer = trainer_of(folder, job)
    network, tables = trainer.model.module.network.double(), full_tables(trainer.model)
    nodes = torch.cat([tables["user"], tables["item"]]).double()
    rows, matrices = pq.read_table(data / "train").to_pylist(), []
    for name in ("item", "other"):
        edges = [(r["user"], r[name]) for r in rows if None not in (r["user"], r[name])]
        users, items = (np.array(ends) for ends in zip(*edges, strict=True))
        matrix = dense(users, items, (USERS, ITEMS)).double()
        matrices.append(matrix / matrix.sum(1, keepdim=True).clamp(min=1))
    with torch.no_grad():
        encoded = cigcn_by_hand(network.encoder, matrices, nodes, multi=True).flatten(1)
        scores = torch.empty(USERS, ITEMS)
        for user in range(USERS):
            for item in range(ITEMS):
                sides = encoded[user : user + 1], encoded[USERS + item : USERS + item + 1]
                query, target = (Fields([side], torch.empty(1, 0)) for side in sides)
                pair = network.pair.query("listen", query), network.pair.item("listen", target)
                scores[user, item] = network.pair.score("listen", *pair)
    return scores


def by_hand(
    data: Path, exclude: list[str], scores: torch.Tensor, split: str = "test"
) -> dict[str, float]:
    known = {pair for split in exclude for pair in pairs_of(data, split)}
    held_out: dict[int, set[int]] = {}
    for user, item in pairs_of(data, split):
        held_out.setdefault(user, set()).add(item)
    found: dict[str, list[float]] = {}
    for user, items in held_out.items():
        ranks = []
        for item in items:
            others = [j for j in range(ITEMS) if j != item and (user, j) not in known]
            ranks.append(1 + int((scores[user, others] >= scores[user, item]).sum()))
        for k in AT:
            hits = [rank for rank in ranks if rank <= k]
            best = sum(1 / np.log2(2 + i) for i in range(min(k, len(items))))
            found.setdefault(f"recall@{k}", []).append(len(hits) / len(items))
            found.setdefault(f"hr@{k}", []).append(float(bool(hits)))
            gain = sum(1 / np.log2(1 + rank) for rank in hits)
            found.setdefault(f"ndcg@{k}", []).append(gain / best)
    return {name: float(np.mean(v)) for name, v in found.items()} | {"n": len(held_out)}


@pytest.mark.parametrize(
    ("exclude", "chunk"), [(["train"], 8192), (["train", "valid"], 7), ([], 80)]
)
def test_against_all_items(
    pair_data: Path, tmp_path: Path, one_process: torch.device, exclude: list[str], chunk: int
):
    expected = by_hand(pair_data, exclude, scores_of(tmp_path, pair_data))
    assert evaluate(tmp_path, job_of(pair_data, exclude=exclude, chunk=chunk)) == pytest.approx(
        expected
    )
    assert expected["recall@10"]


def scores_of_towers(folder: Path, job: Any) -> torch.Tensor:
    """By the layers of the users' tower and of the items', one after the other."""
    trainer = trainer_of(folder, job)
    network: Any = trainer.model.module.network.double()
    towers, tables = network.pair.towers, full_tables(trainer.model)
    vectors = []
    for tower, table in (("tower0", "user"), ("tower1", "item")):
        (first, *_), last = towers[tower]
        hidden = (tables[table].double() @ first.weight.T + first.bias).relu()
        vectors.append((hidden @ last.weight.T + last.bias).detach())
    if job.model.pair.cosine:
        vectors = [v / v.norm(dim=1, keepdim=True) for v in vectors]
    return vectors[0] @ vectors[1].T


def test_what_is_validated_is_a_candidate(
    pair_data: Path, tmp_path: Path, one_process: torch.device
):
    """Though the validation data are excluded in the test."""
    job = job_of(pair_data, exclude=["train", "valid"])
    wanted = by_hand(pair_data, ["train"], scores_of(tmp_path, pair_data), "valid")
    assert evaluate(tmp_path, job, split="valid") == pytest.approx(wanted)


def test_ids_that_are_no_items(tmp_path: Path, one_process: torch.device):
    """Known from another feature they are left out; of the task itself they are refused."""
    write_pair_data(tmp_path, behaviours=True)
    for split in ("train", "valid", "test"):
        file = tmp_path / split / "0.parquet"
        table = pq.read_table(file)
        pq.write_table(table.filter(pc.less(table["item"], 40).fill_null(True)), file)
    full = evaluate(tmp_path, job_of(tmp_path, own=["other"]))

    def of_items(number: int) -> Values:
        listen = {"num_items": number, "ranking": {"at": AT, "own": ["other"]}}
        tasks = {f"tasks__listen__{key}": value for key, value in listen.items()}
        return evaluate(tmp_path, pair_job(tmp_path, data__test=["test"], **tasks))

    scores = scores_of(tmp_path, tmp_path)
    scores[:, 40:] = -torch.inf
    found, wanted = of_items(40), by_hand(tmp_path, ["train"], scores)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["own_hr@3"] >= full["own_hr@3"] > 0
    with pytest.raises(ValueError, match=r"id 39, not below the num_items 39 of task 'listen'"):
        of_items(39)


def test_own_candidates_that_nobody_has_are_refused(
    pair_data: Path, tmp_path: Path, one_process: torch.device
):
    job = job_of(pair_data, own=["other"])
    with pytest.raises(ValueError, match=r"ranking.own: no query of data.events has an item under"):
        evaluate(tmp_path, job)


@pytest.mark.parametrize("cosine", [False, True])
def test_two_towers_against_all_items(pair_data: Path, tmp_path: Path, cosine: bool):
    """Not by rows but by what the towers make of them, on any number of ranks."""
    job = pair_job(
        pair_data,
        data__test=["test"],
        model__pair={"name": "two_tower", "hidden": [6], "dim": 4, "cosine": cosine},
        tasks__listen__ranking={"at": AT, "exclude": ["train"], "chunk": 7},
        train__eval_batch_size=37,
    )
    [scores] = run_ranks(1, scores_of_towers, tmp_path, job)
    expected = by_hand(pair_data, ["train"], scores)
    by_rows = by_hand(pair_data, ["train"], run_ranks(1, scores_of, tmp_path, pair_data)[0])
    assert expected["recall@10"] and expected != pytest.approx(by_rows)
    for num_ranks in (1, 3):
        for found in run_ranks(num_ranks, evaluate, tmp_path, job):
            assert found == pytest.approx(expected)


def test_the_number_of_ranks_changes_nothing(tmp_path: Path):
    write_pair_data(tmp_path, behaviours=True)
    job = job_of(tmp_path, against=30, own=["other"], chunk=30)
    [alone], ranks = [run_ranks(n, evaluate, tmp_path, job) for n in (1, 3)]
    assert alone["own_hr@10"]
    for found in ranks:
        assert found == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        {"model__pair": {"name": "mesi", "scale": 3.0}},
        {
            "model__pair": {"name": "joined"},
            "model__heads": {"name": "mmoe", "experts": 2, "hidden": [6]},
        },
    ],
    ids=["mesi", "joined"],
)
def test_nodes_of_graphs(tmp_path: Path, model: dict[str, Any]):
    """The graph is encoded once, each rank looking up its slice of the nodes."""
    write_pair_data(tmp_path, behaviours=True)
    job = pair_job(
        tmp_path,
        **{**GRAPH_JOB, **model},
        data__test=["test"],
        tasks__listen__ranking={"at": AT, "exclude": ["train"], "chunk": 7},
        train__eval_batch_size=37,
    )
    [scores] = run_ranks(1, scores_over_graphs, tmp_path, tmp_path, job)
    expected = by_hand(tmp_path, ["train"], scores)
    assert 0 < expected["recall@10"] < 1
    for num_ranks in (1, 3):
        for found in run_ranks(num_ranks, evaluate, tmp_path, job):
            assert found == pytest.approx(expected)


def test_ties_count_against_the_model(pair_data: Path, tmp_path: Path, one_process: torch.device):
    """All scores are 0."""
    found = evaluate(tmp_path, job_of(pair_data, against=30), scale=0.0)
    assert {value for name, value in found.items() if name != "n"} == {0.0}


def test_not_finite_scores_are_refused(pair_data: Path, tmp_path: Path, one_process: torch.device):
    with pytest.raises(ValueError, match=r"task 'listen': \d+ scores are NaN or infinite"):
        evaluate(tmp_path, job_of(pair_data), scale=float("nan"))


def test_against_drawn_items(
    pair_data: Path, tmp_path: Path, one_process: torch.device, monkeypatch: pytest.MonkeyPatch
):
    """Each held-out pair is a case, and its candidates are none of the user's.

    What is reported of all items stays what it is without them.
    """
    seen: list[Any] = []
    plain = Retrieval._drawn

    def watched(self: Retrieval, name: str, number: int, num_items: int, held: Any, *known: Any):
        seen.append((plain(self, name, number, num_items, held, *known), held))
        return seen[-1][0]

    monkeypatch.setattr(Retrieval, "_drawn", watched)
    found = evaluate(tmp_path, job_of(pair_data, against=30, exclude=["train", "valid"], chunk=30))
    [(drawn, held)] = seen
    own: dict[int, set[int]] = {}
    for split in ("train", "valid", "test"):
        for user, item in pairs_of(pair_data, split):
            own.setdefault(user, set()).add(item)
    users = held.ids[held.query]
    assert drawn.shape == (len(set(pairs_of(pair_data, "test"))), 30)
    expected = by_hand(pair_data, ["train", "valid"], scores_of(tmp_path, pair_data))
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for user, items in zip(users.tolist(), drawn.tolist(), strict=True):
        assert not own[user] & set(items)
    assert len(set(drawn.flatten().tolist())) == ITEMS
    scores = scores_of(tmp_path, pair_data)
    above = scores[users.unsqueeze(1), drawn] >= scores[users, held.item].unsqueeze(1)
    for k in AT:
        assert found[f"sampled_hr@{k}"] == pytest.approx((above.sum(1) < k).double().mean().item())
        assert found[f"sampled_recall@{k}"] == found[f"sampled_hr@{k}"]


def test_re_ranking_what_the_query_is_known_for(tmp_path: Path, one_process: torch.device):
    """By the model and by popularity; what is not among the candidates is not found."""
    write_pair_data(tmp_path, behaviours=True)
    found = evaluate(tmp_path, job_of(tmp_path, own=["other"]))
    scores = scores_of(tmp_path, tmp_path)
    rows = pq.read_table(tmp_path / "train").to_pylist()
    bought = set(pairs_of(tmp_path, "train"))
    popularity = [len({u for u, other in bought if other == item}) for item in range(ITEMS)]
    candidates: dict[int, set[int]] = {}
    for row in rows:
        if row["other"] is not None and (row["user"], row["other"]) not in bought:
            candidates.setdefault(row["user"], set()).add(row["other"])
    held_out: dict[int, set[int]] = {}
    for user, item in pairs_of(tmp_path, "test"):
        held_out.setdefault(user, set()).add(item)
    hits: dict[str, list[float]] = {"own_": [], "popular_": []}
    for user, items in held_out.items():
        own = candidates.get(user, set())
        lists = {
            "own_": sorted(own, key=lambda item: -scores[user, item]),
            "popular_": sorted(own, key=lambda item: (-popularity[item], item)),
        }
        for kind, order in lists.items():
            hits[kind].append(len(items & set(order[:3])) / len(items))
    assert 0 < np.mean(hits["own_"]) < 1
    for kind, values in hits.items():
        assert found[f"{kind}recall@3"] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("model", ["mf", "mesi", "joined"])
def test_drawn_and_own_candidates_without_all_others(tmp_path: Path, model: str, ranks: int):
    """They rank as they do beside all items."""
    write_pair_data(tmp_path, behaviours=True)
    parts: dict[str, Any] = {}
    if model != "mf":
        parts = {**GRAPH_JOB, "model__pair": {"name": model}}
    if model == "joined":
        parts["model__heads"] = {"name": "mmoe", "experts": 2, "hidden": [6]}
    found = []
    for everything in (True, False):
        ranking = {"at": AT, "all": everything, "against": 30, "own": ["other"], "chunk": 7}
        job = pair_job(
            tmp_path,
            **parts,
            data__test=["test"],
            tasks__listen__ranking=ranking,
            train__eval_batch_size=37,
        )
        found.append(run_ranks(ranks, evaluate, tmp_path, job)[0])
    beside, alone = found
    assert beside.keys() - alone.keys() == {
        f"{m}@{k}" for m in ("recall", "hr", "ndcg") for k in AT
    }
    assert alone == pytest.approx({name: beside[name] for name in alone}, rel=1e-12)
    assert 0 < beside["sampled_hr@3"] < 1


def test_each_block_is_progress(
    pair_data: Path, tmp_path: Path, one_process: torch.device, monkeypatch: pytest.MonkeyPatch
):
    """A ranking that is slow, and goes on, is no hang."""
    monkeypatch.setattr(retrieval, "BLOCK", 1)  # one query at a time
    trainer = trainer_of(tmp_path, job_of(pair_data))
    beats = []
    monkeypatch.setattr(trainer.evaluator.watchdog, "beat", lambda: beats.append(1))
    found = trainer.evaluator.evaluate("test")["listen"]["all"]
    assert len(beats) >= found["n"] > 20


def test_a_ranking_of_nothing_is_refused(pair_data: Path):
    with pytest.raises(ValueError, match="nothing is ranked; give against or own"):
        job_of(pair_data, all=False)


def test_a_job_stops_early_by_a_ranking_and_has_learned(
    pair_data: Path, tmp_path: Path, one_process: torch.device
):
    """Users, items and friends are of one group out of four; by chance recall@20 is a quarter."""
    job = pair_job(
        pair_data,
        data__valid=["valid"],
        data__test=["test"],
        tasks__listen__ranking={"at": [20], "exclude": []},
        embedding__optimizer__lr=0.1,
        train__epochs=12,
        train__early_stopping={"metric": "ndcg@20", "patience": 3},
    )
    trainer_of(tmp_path, job).fit()
    test = json.loads((tmp_path / "run/result.json").read_text())["test"]
    assert test["listen"]["all"]["recall@20"] > 0.6
    assert test["along"]["all"]["n"] == 0
