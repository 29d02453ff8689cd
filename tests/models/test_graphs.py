# SPDX-License-Identifier: Apache-2.0
"""Graph encoders and their decoders against dense matrices, line by line; and ranks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.data.batch import Position
from deltarec.layers.graph import Adjacency, bipartite
from deltarec.models import GRAPH_ENCODERS, PAIR_MODELS, TASK_HEADS
from deltarec.models.roles import Fields, FieldShapes, Side
from deltarec.run_folder import RunFolder
from deltarec.trainer import Trainer
from tests.conftest import run_ranks
from tests.embeddings.test_torchrec_traps import full_tables
from tests.layers.test_graph import dense
from tests.models.test_pairs import train
from tests.pair_job import CONFIG, pair_job, write_pair_data

SIZES = (5, 6)
BEHAVIOURS = ("view", "cart", "buy")
DIM = 4
TASKS = ("buy", "view")


def graphs() -> tuple[list[Adjacency], list[Tensor]]:
    """Random ones, normalised on the left, sparse and dense; the last behaviour has few edges."""
    random = np.random.default_rng(0)
    found, matrices = [], []
    for edges in (12, 8, 3):
        users, items = (random.integers(0, size, edges) for size in SIZES)
        found.append(Adjacency.of(bipartite(users, items, SIZES), "left", torch.device("cpu")))
        matrix = dense(users, items, SIZES)
        matrices.append(matrix / matrix.sum(1, keepdim=True).clamp(min=1))
    return found, matrices


def encoder_of(name: str, **options: Any) -> nn.Module:
    part = GRAPH_ENCODERS[name]
    config = {"name": name, "user": "user", "behaviours": list(BEHAVIOURS), "layers": 3}
    return part(part.Config(**{**config, **options}), DIM, len(BEHAVIOURS)).double()


def cigcn_by_hand(encoder: Any, matrices: Sequence[Tensor], e0: Tensor, multi: bool) -> Tensor:
    """Spec, 4.2: a loop over target behaviours b, hops l, and behaviours k."""
    k_all = len(matrices)

    def f(layer: int, s: Tensor) -> Tensor:
        if encoder.encoder == "lightgcn":
            return s
        if encoder.encoder == "gccf":
            return F.leaky_relu(s, 0.1)
        gcn = F.leaky_relu(
            s @ encoder.transforms[layer].weight.T + encoder.transforms[layer].bias, 0.1
        )
        if encoder.encoder == "gcn":
            return gcn
        return gcn + F.leaky_relu((e0 * gcn) @ encoder.product.weight.T + encoder.product.bias, 0.1)

    outputs = []
    for b in range(k_all):
        s = matrices[b] @ e0
        h = f(0, s) + e0
        e = e0 + h
        for layer in range(1, 3):
            if multi:
                linear = encoder.weights[layer - 1]
                columns = slice(b * k_all, (b + 1) * k_all)
                a = F.leaky_relu(e0 @ linear.weight[columns].T + linear.bias[columns], 0.1)
                s = sum(((a[:, k : k + 1] * (matrices[k] @ s)) for k in range(k_all)), 0 * s)
            else:
                s = matrices[b] @ s
            h = f(layer, s) + h
            e = e + h
        outputs.append(e)
    return torch.stack(outputs, dim=1)


def assert_alike(got: Tensor, wanted: Tensor, leaves: Sequence[Tensor]) -> None:
    """Within 1e-5, as the edges are fp32; and all gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(got)
    mine, theirs = (
        torch.autograd.grad(x, leaves, upstream, retain_graph=True) for x in (got, wanted)
    )
    for first, second in zip(mine, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("kind", ["lightgcn", "gccf", "gcn", "ngcf"])
def test_cigcn(kind: str, multi: bool):
    torch.manual_seed(0)
    sparse, matrices = graphs()
    encoder = encoder_of("cigcn", encoder=kind, multi_graph=multi)
    nodes = torch.randn(sum(SIZES), DIM, dtype=torch.float64, requires_grad=True)
    wanted = cigcn_by_hand(encoder, matrices, nodes, multi)
    assert_alike(encoder(nodes, sparse), wanted, [nodes, *encoder.parameters()])


def test_lightgcn():
    torch.manual_seed(0)
    sparse, matrices = graphs()
    nodes = torch.randn(sum(SIZES), DIM, dtype=torch.float64, requires_grad=True)
    wanted = []
    for matrix in matrices:
        layers = [nodes]
        for _ in range(3):
            layers.append(matrix @ layers[-1])
        wanted.append(torch.stack(layers).mean(0))
    assert_alike(encoder_of("lightgcn")(nodes, sparse), torch.stack(wanted, dim=1), [nodes])


def pair_model(name: str, **options: Any) -> Any:
    """One over nodes of three behaviours, with random weights."""

    def side(feature: str) -> Side:
        shapes = FieldShapes((len(BEHAVIOURS) * DIM,), 0, (feature,))
        return Side(("user" if feature == "user" else "item",), shapes, BEHAVIOURS)

    part = PAIR_MODELS[name]
    sides = {task: (side("user"), side(task)) for task in TASKS}
    config = part.Config(**{"name": name, **options})
    model = part(config, sides)
    if model.heads_dim:
        heads: Any = TASK_HEADS["mmoe"]
        shape = heads.Config(name="mmoe", hidden=[5], experts=3, tower=[])
        model.heads = heads(shape, model.heads_dim, dict.fromkeys(TASKS))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.double()


def scored(model: Any, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors `[7, K·D]` of both sides, the scores of their pairs, and of all with all."""
    users, items = (
        torch.randn(7, len(BEHAVIOURS) * DIM, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    none = torch.empty(7, 0)
    query, item = model.query(name, Fields([users], none)), model.item(name, Fields([items], none))
    return users, items, model.score(name, query, item), model.scores(name, query, item)


@pytest.mark.parametrize("task", TASKS)
def test_mesi(task: str):
    """Spec, 4.3: a loop over samples."""
    torch.manual_seed(0)
    model = pair_model("mesi")
    users, items, got, of_all = scored(model, task)
    s = BEHAVIOURS.index(task)

    def by_hand(u: Tensor, i: Tensor) -> Tensor:
        of_u, of_i = u.view(3, DIM), i.view(3, DIM)
        gate = (model.gate.weight @ torch.cat([of_u[s], of_i[s]]) + model.gate.bias).softmax(0)
        experts = [of_u[k] * of_i[k] for k in range(3)]
        return 300 * sum((gate[k] * experts[k] for k in range(3)), 0 * experts[0]).sum()

    wanted = torch.stack([by_hand(u, i) for u, i in zip(users, items, strict=True)])
    every = torch.stack([torch.stack([by_hand(u, i) for i in items]) for u in users])
    leaves = [users, items, *model.parameters()]
    assert_alike(got, wanted, leaves)
    assert_alike(of_all, every, leaves)


@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_mesi_of_gates_that_are_far_apart(size: float):
    """All pairs at once are what single pairs are, though the exponentials' products vanish."""
    torch.manual_seed(0)
    model = pair_model("mesi").float()
    users, items = (size * torch.randn(9, len(BEHAVIOURS) * DIM) for _ in range(2))
    found = model.scores("buy", users, items)
    wanted = torch.stack([model.score("buy", user.expand_as(items), items) for user in users])
    assert wanted.isfinite().all()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_bilinear_and_heads_see_the_sum_of_the_behaviours():
    torch.manual_seed(0)
    for name, options in (("bilinear", {"scale": 0.3}), ("joined", {})):
        model = pair_model(name, **options)
        users, items, got, of_all = scored(model, "view")
        u, i = (x.view(7, 3, DIM).sum(1) for x in (users, items))
        if name == "bilinear":
            relation = model.relations["of_view"]
            wanted, every = 0.3 * (u * i * relation).sum(1), 0.3 * u @ relation.diag() @ i.T
            leaves = [users, items, relation]
        else:
            wanted = model.heads(torch.cat([u, i], dim=1))[:, 1]
            pairs = [torch.cat([a, b]) for a in u for b in i]
            every = model.heads(torch.stack(pairs))[:, 1].view(7, 7)
            leaves = [users, items, *model.heads.experts.parameters()]
        assert_alike(got, wanted, leaves)
        assert_alike(of_all, every, leaves)


GRAPH = {"name": "cigcn", "user": "user", "behaviours": ["item", "other"], "layers": 3}
JOB: dict[str, Any] = {
    "features": {name: CONFIG["features"][name] for name in ("user", "item", "other")},
    "tasks": {
        "listen": {"kind": "pairwise", "query": ["user"], "item": ["item"], "negatives": 2},
        "along": {"kind": "pairwise", "query": ["user"], "item": ["other"]},
    },
    "model__graph": GRAPH,
    "train__batch_size": 190,
    "embedding__optimizer__lr": 0.02,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pair_data(folder, behaviours=True)
    return folder


@pytest.mark.parametrize("hide", [False, True])
def test_losses_of_a_step(data: Path, tmp_path: Path, one_process: torch.device, hide: bool):
    """By dense matrices, with or without the batch's own edges; `l2` is on rows of the tables."""
    job = pair_job(
        data,
        **JOB,
        model__pair={"name": "mf", "l2": 0.1},
        model__graph__name="lightgcn",
        model__graph__layers=2,
        model__graph__hide_targets=hide,
    )
    trainer = Trainer(job, RunFolder(tmp_path), torch.device("cpu"))
    rows = full_tables(trainer.model)
    batch = next(trainer.reader.read(Position(), 1))
    graphs: Any = trainer.model.module
    found = graphs.losses(graphs.network(batch, graphs.tables(batch)), batch)

    ids = {name: batch.node(name, job.data_schema) for name in ("user", "item", "other")}
    log = pq.read_table(data / "train/0.parquet")
    nodes = torch.cat([rows["user"], rows["item"]])
    vectors = []
    for name in ("item", "other"):
        pairs = log.select(["user", name]).to_pandas().dropna().astype(int)
        matrix = dense(*pairs.to_numpy().T, (60, 80)).float()
        degree = matrix.sum(1).clamp(min=1)
        there = ids[name] >= 0
        if hide:
            matrix[ids["user"][there], ids[name][there]] = 0
            matrix[ids[name][there], ids["user"][there]] = 0
        matrix = matrix / (degree.unsqueeze(1) * degree).sqrt()
        vectors.append((nodes + matrix @ nodes + matrix @ (matrix @ nodes)) / 3)
    encoded = torch.cat(vectors, dim=1)
    for t, (name, task) in enumerate(job.tasks.items()):
        lives = batch.mask[:, t]
        drawn = [f"{name}/negative{n}" for n in range(task.negatives)]
        user, item, *negatives = (
            batch.node(feature, job.data_schema)[lives] for feature in ("user", *task.item, *drawn)
        )
        above = [(encoded[user] * (encoded[item] - encoded[n])).sum(1) for n in negatives]
        squares = sum(nodes[x].square().sum(1) for x in (user, item, *negatives)) / 2
        wanted = (-F.logsigmoid(torch.stack(above)).mean(0) + 0.1 * squares).mean()
        torch.testing.assert_close(found[t], wanted, rtol=1e-5, atol=1e-6)


def test_heads_of_one_task_keep_its_gradient(data: Path, tmp_path: Path, one_process: Any):
    """Gates and towers of `joined` are no shared parameters, as above a trunk."""
    heads = {"name": "mmoe", "experts": 2, "hidden": [4], "tower": [4]}
    job = pair_job(data, **JOB, model__pair={"name": "joined"}, model__heads=heads)
    network: Any = Trainer(job, RunFolder(tmp_path), torch.device("cpu")).model.module.network
    own = {id(p) for p in network.own_parameters()}
    found = {name for name, p in network.pair.heads.named_parameters() if id(p) in own}
    every = {name for name, _ in network.pair.heads.named_parameters()}
    assert found == {name for name in every if name.startswith(("gates.", "towers."))}


@pytest.mark.parametrize(
    ("pair", "balance"),
    [({"name": "mesi", "scale": 3.0, "l2": 0.01}, "equal"), ({"name": "bilinear"}, "imtl")],
)
def test_the_number_of_ranks_changes_nothing(
    data: Path, tmp_path: Path, pair: dict[str, Any], balance: str
):
    """Each rank looks up a slice of the nodes; 60 users and 80 items in slices of unequal ends."""
    job = {**JOB, "balance": {"name": balance}, "embedding__tables__item__sharding": "row_wise"}
    job["model__graph"] = GRAPH | {"hide_targets": balance == "equal"}
    step = partial(train, **job)
    runs = [torch.stack(run_ranks(n, step, tmp_path, data, pair)).mean(0) for n in (1, 3)]
    assert runs[0][-1, 0] < runs[0][0, 0]
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=1e-6)


def test_subgraphs_train_alike_on_any_number_of_ranks(data: Path, tmp_path: Path):
    """Those of all that is near are the whole graph; smaller ones are other nodes at each step."""
    pair = {"name": "mesi", "scale": 3.0, "l2": 0.01}

    def losses(num_ranks: int, **graph: Any) -> Tensor:
        step = partial(train, **{**JOB, "train__batch_size": 20, "model__graph": GRAPH | graph})
        return torch.stack(run_ranks(num_ranks, step, tmp_path, data, pair)).mean(0)

    whole, near = losses(1), losses(1, subgraph={"nodes": 80, "hops": 3})
    torch.testing.assert_close(near, whole, rtol=1e-4, atol=1e-6)
    near = losses(1, subgraph={"nodes": 80, "hops": 3}, hide_targets=True)
    torch.testing.assert_close(near, losses(1, hide_targets=True), rtol=1e-4, atol=1e-6)
    few = [losses(n, subgraph={"nodes": 6, "hops": 2}, hide_targets=True) for n in (1, 3)]
    assert not torch.allclose(few[0], whole, rtol=1e-3)
    torch.testing.assert_close(few[1], few[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__graph__behaviours": ["item", "seen"]}, "there is no id feature 'seen'"),
        ({"model__graph__behaviours": ["item", "user"]}, "all behaviours need one table"),
        ({"model__graph__behaviours": ["user"]}, "which is another"),
        ({"embedding__tables__user__dim": 4}, "are of one graph; give them one dim"),
        ({"embedding__tables__user__quantisation_aware": "int8"}, "not for nodes of a graph"),
        ({"tasks__listen__ranking": {"own": ["user"]}}, "is no feature of the items' table"),
        ({"model__heads": {"name": "shared_bottom"}}, "with 'heads' if it is joined"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        pair_job(tmp_path, **{**JOB, **overrides})


def test_mesi_needs_nodes_and_a_behaviour_of_its_own(tmp_path: Path):
    from deltarec.models.network import network_of

    for graph, message in (
        (None, "tasks.listen: model.pair mesi takes the vectors of a graph's nodes alone"),
        ({**GRAPH, "behaviours": ["item"]}, "tasks.along.item: 'other' is not among"),
    ):
        job = pair_job(
            tmp_path,
            **{**JOB, "model__pair": {"name": "mesi"}, "model__graph": graph},
        )
        with pytest.raises(ValueError, match=message):
            network_of(job.model, job.data_schema, job.embedding.resolved(), seed=0)
