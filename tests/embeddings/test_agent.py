# SPDX-License-Identifier: Apache-2.0
"""AutoAssign+: its equations, and jobs on any ranks, stopped and resumed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltarec.assembly import open_reader
from deltarec.data.batch import Fresh, Position
from deltarec.distributed import process_group
from deltarec.embeddings.agent import STATE, Agent, Critics
from deltarec.embeddings.fresh_rows import first_vectors
from deltarec.embeddings.identities import GIVEN, TAKEN
from deltarec.embeddings.replay import Replay
from deltarec.job import Job
from deltarec.layers.shared_rows import SharedRows
from deltarec.run_folder import RunFolder
from deltarec.streaming import StreamTrainer
from tests.conftest import run_ranks
from tests.distributed.test_any_number_of_processes import assert_equal_losses
from tests.embeddings.quantised_job import whole_state
from tests.end_to_end.ranks import logged, stored
from tests.small_job import small_job
from tests.stream_job import stream_job, write_stream

HASH = [{"name": "hash", "buckets": 2**62}]
AGENT = {
    "gamma": 0.9,
    "row_price": 0.1,
    "update_every": 1,
    "batch_size": 64,
    "replay": 500,
    "warmup": 0,
}
PARTITION = "date=2026-01-01/hour=8"
TABLES = {
    "user": {"rows": 72, "assignment": {"policy": "autoassign", "shared": 3, "candidates": 100}},
    "item": {"rows": 48, "assignment": {"policy": "autoassign", "shared": 4, "buckets": 12}},
}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[torch.device]:
    with process_group(threads=1) as device:
        yield device


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_stream(folder, 4)
    return folder


def agent_job(folder: Path, precision: str = "fp32", **overrides: Any) -> Job:
    """Four partitions of three steps, hashed ids, two tables with fewer rows than ids."""
    tables: dict[str, Any] = {f"embedding__tables__{n}": table for n, table in TABLES.items()}
    if precision != "fp32":
        tables["embedding__tables__country__sharding"] = "table_wise"
        tables["embedding__tables__city"] = {"rows": 50}
    hashed = {f"features__{name}__transforms": HASH for name in ("user", "item", "history")}
    agent = AGENT | overrides.pop("embedding__agent", {})
    options = {"embedding__precision": precision, "embedding__agent": agent}
    options["data__reader__shuffle"] = False  # a user's next sample comes after
    return stream_job(folder, **(tables | hashed | options | overrides))


def trainer(job: Job, run: Path) -> StreamTrainer:
    return StreamTrainer(job, RunFolder(run), torch.device("cpu"))


def learner(mine: StreamTrainer) -> Agent:
    """The agent of a trainer that has one."""
    assert mine.assignments.agent is not None
    return mine.assignments.agent


def agent_of(job: Job) -> Agent:
    config, specs = job.embedding.agent, job.embedding.resolved()
    return Agent(config, job.data_schema, specs, job.train.seed)


def train_all(folder: Path, jobs: list[Job], saved: list[Path]) -> list[Any]:
    """Each job's training; and what this many ranks load from other runs' checkpoints."""
    runs, loaded = [], []
    for job in jobs:
        run = folder / job.embedding.precision / f"run{dist.get_world_size()}"
        trainer(job, run).fit()
        dist.barrier()  # the main rank writes
        trained = [record for record in logged(run) if record["split"] == "train"]
        runs.append({"losses": [[record["loss/click"], record["loss/buy"]] for record in trained]})
    for job, run in zip(jobs, saved, strict=False):
        other = folder / f"loading{dist.get_world_size()}" / job.embedding.precision
        if dist.get_rank() == 0:
            shutil.copytree(run / "checkpoints", other / "checkpoints")
        dist.barrier()
        mine = trainer(job, other)
        mine.checkpoints.load("latest")
        loaded.append(whole_state(mine))
    return [runs, loaded]


def test_the_same_on_any_number_of_ranks(data: Path, tmp_path: Path):
    """Ids, places and rows are equal; what is learned, but for rounding."""
    jobs = [agent_job(data, precision) for precision in ("fp32", "int8")]
    saved = [tmp_path / job.embedding.precision / "run1" for job in jobs]
    found = {1: run_ranks(1, train_all, tmp_path, jobs, [])[0]}
    for ranks in (2, 4):
        found[ranks] = run_ranks(ranks, train_all, tmp_path, jobs, saved)[0]
    for number, (job, tolerance) in enumerate(zip(jobs, (1e-4, 5e-4), strict=True)):
        assert_equal_losses([runs[number] for runs, _ in found.values()], tolerance)
        ends = [stored(tmp_path / job.embedding.precision / f"run{ranks}") for ranks in found]
        for name in ("keys", "uses", "marks", "counts", "queue", "holders"):
            for table in TABLES:
                key = f"model.assignments.{table}.{name}"
                assert all(torch.equal(end[key], ends[0][key]) for end in ends), key
        given, taken = (
            ends[0]["model.assignments.user.counts"][:, GIVEN : TAKEN + 1].sum(0).tolist()
        )
        assert given > taken > 0
        for end in ends[1:]:
            key = "model.assignments.the agent.actor.trunk.0.weight"
            torch.testing.assert_close(end[key], ends[0][key], rtol=0, atol=1e-4)
        one, other = found[2][1][number], found[4][1][number]
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_stopped_inside_a_partition_and_resumed(data: Path, tmp_path: Path, precision: str):
    """Bit for bit: replay and all that is drawn belong to the checkpoint."""
    whole = agent_job(data, precision)
    cut = agent_job(data, precision, train__max_steps=7)
    trainer(whole, tmp_path / "whole").fit()
    trainer(cut, tmp_path / "again").fit()
    trainer(whole, tmp_path / "again").fit()
    mine, theirs = stored(tmp_path / "again"), stored(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    scored = [
        [r for r in logged(tmp_path / run) if r["split"] == "partition"]
        for run in ("whole", "again")
    ]
    assert scored[0] == scored[1]
    last = [record for record in logged(tmp_path / "whole") if record["split"] == "train"][-1]
    assert last["rows_in_use/user"] == last["promotions/user"] - last["evictions/user"] > 0
    assert last["agent/critic_loss"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"embedding__agent": {"critic": False}},
        {"embedding__agent": {"gamma": 0.0, "bce": 0.0}},
        {"user": {"retention": "frequency", "evict": "lru", "start": "random", "shared": 1}},
        {"user": {"hard": "always", "evict": "lfu"}},
    ],
    ids=["no critic", "bandit", "frequency", "hard"],
)
def test_ablations_train(data: Path, tmp_path: Path, options: dict[str, Any]):
    if "user" in options:
        assignment = TABLES["user"]["assignment"] | options["user"]
        options = {"embedding__tables__user": {"rows": 72, "assignment": assignment}}
    mine = trainer(agent_job(data, train__max_steps=6, **options), tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in learner(mine).tensors().items()}
    mine.fit()
    after = learner(mine).tensors()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "actor.trunk.0.weight" in moved
    has_critic = mine.job.embedding.agent.critic
    assert ("critics.weights.0" in moved) == has_critic


def test_the_model_sees_a_mixture():
    """x = αᵀS + p̃ r, with gradients for all four; hard, p̃ is 0 or 1."""
    torch.manual_seed(0)
    shared, rows = SharedRows(3, 4, 1.0), torch.randn(5, 4, requires_grad=True)
    actions = torch.rand(5, 4, requires_grad=True)
    found = shared(rows, actions)
    for row, action, x in zip(rows, actions, found, strict=True):
        z = sum(action[k] * shared.vectors[k] for k in range(3))
        torch.testing.assert_close(x, z + action[3] * row)
    found.sum().backward()
    z = actions[:, :3].detach() @ shared.vectors.detach()
    assert actions.grad is not None and rows.grad is not None and shared.vectors.grad is not None
    torch.testing.assert_close(actions.grad[:, 3], rows.detach().sum(1))
    torch.testing.assert_close(actions.grad[:, :3], shared.vectors.detach().sum(1).expand(5, 3))
    torch.testing.assert_close(rows.grad, actions.detach()[:, 3:].expand(5, 4))
    torch.testing.assert_close(
        shared.vectors.grad, actions.detach()[:, :3].sum(0)[:, None].expand(3, 4)
    )
    shared.hard = "always"
    kept = (actions[:, 3:] >= 0.5).float()
    torch.testing.assert_close(shared(rows, actions), z + kept * rows)
    shared.hard = "serving"
    assert not torch.equal(shared(rows, actions), shared.eval()(rows, actions))


def test_a_transition_has_its_rewards_states_and_gradients(data: Path, tmp_path: Path):
    mine = trainer(agent_job(data, train__max_steps=2), tmp_path / "run")
    agent, kept = learner(mine), []
    observe = agent.observe
    agent.observe = lambda *a: (kept.append(a), observe(*a))  # pyright: ignore
    mine.fit()
    batch, logits, observed = kept[-1]
    records, keys = agent.replay.records[100:200], agent.replay.keys[100:200]
    states, actions, gradients, context, error, reward, _ = records.split(agent._parts, 1)
    assert {*keys[:, 0].tolist()} == {*batch.index.tolist()}
    p = torch.stack([batch.identities[n].actions[:, -1] for n in ("user", "item")]).mean(0)
    labels, mask = batch.labels, batch.mask.float()
    y = logits.sigmoid()
    bce = -(labels * y.log() + (1 - labels) * (1 - y).log())
    wanted = -(bce * mask).sum(1) / mask.sum(1) - 0.1 * p
    by_index = dict(zip(keys[:, 0].tolist(), torch.cat([reward, error], 1), strict=True))
    found = torch.stack([by_index[i] for i in batch.index.tolist()])
    wanted = torch.stack([wanted, ((labels - y) * mask).sum(1) / mask.sum(1)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    own = [batch.identities[name] for name in ("user", "item")]
    left = [observed.actions[name].grad for name in ("user", "item")]
    assert all(gradient is not None and gradient.any() for gradient in left)
    of_a_mean = torch.cat(left, 1) * len(batch.index)  # pyright: ignore
    wanted = [torch.cat([o.states for o in own], 1), torch.cat([o.actions for o in own], 1)]
    wanted = torch.cat([*wanted, of_a_mean, observed.context], 1)
    found = torch.cat([states, actions, gradients, context], 1)
    assert torch.equal(found[keys[:, 0].argsort()], wanted[batch.index.argsort()])


def test_critics_learn_the_bellman_equation(data: Path):
    """Of one update on one batch, by loops over the equations of the module's text."""
    job = agent_job(data, embedding__agent={"gamma": 0.9, "noise": 0.0, "batch_size": 8})
    agent = agent_of(job)
    torch.manual_seed(1)
    for critics in (agent.critics, agent.slow_critics):
        nn.init.normal_(critics.weights[-1])
    now, after = torch.rand(8, sum(agent._parts)), torch.rand(8, sum(agent._parts))
    now[:, -1] = torch.tensor([0.0, 1.0] * 4)
    states, actions, _, context, _, reward, done = now.split(agent._parts, 1)
    later, _, _, other, *_ = after.split(agent._parts, 1)
    loss = torch.zeros(())
    for i in range(8):
        chosen = []
        for table, s in zip(agent.tables.values(), later[i].split(STATE), strict=True):
            action = agent.slow_actor(table, s[None])[0].detach().clone()
            action[-1] *= s[-1]
            chosen.append(action)
        inputs = torch.cat([later[i], *chosen, other[i]])
        best = agent.slow_critics(inputs[None]).min().detach()
        target = reward[i] + 0.9 * (1 - done[i]) * best
        q = agent.critics(torch.cat([states[i], actions[i], context[i]])[None])[:, 0]
        loss = loss + (q - target).square().sum() / 8
    found = agent._learn_critics(now, after, torch.Generator())
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_actor_climbs_the_critic_and_the_gradient(data: Path):
    job = agent_job(data, embedding__agent={"bce": 0.5, "row_price": 0.2, "trust": 0.3})
    agent = agent_of(job)
    torch.manual_seed(1)
    for critics in (agent.critics, agent.slow_critics):
        nn.init.normal_(critics.weights[-1])
    now = torch.rand(8, sum(agent._parts))
    states, taken, gradients, context, *_ = now.split(agent._parts, 1)
    loss = torch.zeros(())
    for i in range(8):
        chosen = []
        for table, s in zip(agent.tables.values(), states[i].split(STATE), strict=True):
            action = agent.actor(table, s[None])[0]
            chosen.append(torch.cat([action[:-1], action[-1:] * s[-1]]))
        a = torch.cat(chosen)
        q = agent.critics(torch.cat([states[i], a, context[i]])[None])[0, 0]
        kept = sum(own[-1] for own in chosen) / len(chosen)
        bce = gradients[i] @ a + 0.3 / 2 * (a - taken[i]).square().sum()
        loss = loss + (-q + 0.5 * (bce + 0.2 * kept)) / 8
    wanted = torch.autograd.grad(loss, list(agent.actor.parameters()), allow_unused=True)
    frozen = [p.clone() for p in agent.critics.parameters()]
    assert agent._learn_actor(now) == pytest.approx(float(loss.detach()), rel=1e-5)
    for parameter, gradient in zip(agent.actor.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, frozen, agent.critics.parameters()))


def test_slow_copies_follow(data: Path):
    agent = agent_of(
        agent_job(data, embedding__agent={"follow": 0.2, "batch_size": 4, "update_every": 4})
    )
    records = torch.rand(20, sum(agent._parts))
    agent.replay.append(records, torch.arange(80).view(20, 4))
    agent.counters[2] = 8  # two updates at update_every 4
    slow = agent.slow_critics.weights[0].clone()
    agent.learn()
    fast = agent.critics.weights[0]
    torch.testing.assert_close(agent.slow_critics.weights[0], slow + 0.2 * (fast - slow))


def test_transitions_follow_their_users(data: Path):
    agent = agent_of(agent_job(data))
    users = [3, 1, 3, 1, 1]
    keys = torch.tensor([[i, user, 0, 0] for i, user in enumerate(users)])
    records = torch.ones(5, sum(agent._parts))
    records[:, 0] = torch.arange(5)
    agent.replay.append(records, keys)
    agent._link()
    found, keys = agent.replay.block()
    assert found[:, 0].tolist() == [1, 3, 4, 0, 2]
    assert found[:, -1].tolist() == [0, 0, 1, 0, 1]


def test_twin_critics_are_two(data: Path):
    torch.manual_seed(0)
    critics, x = Critics(5), torch.randn(4, 5)
    assert not critics(x).any()  # they have no opinion yet
    nn.init.normal_(critics.weights[-1])
    found = critics(x)
    for j in range(2):
        h = x
        for weight, bias in zip(critics.weights, critics.biases, strict=True):
            h = (h if h is x else h.relu()) @ weight[j] + bias[j]
        torch.testing.assert_close(found[j], h[:, 0])
    assert not torch.equal(found[0], found[1])


def test_the_replay_keeps_the_newest():
    replay = Replay(5, 1, 1)
    for number in range(0, 12, 3):
        rows = torch.arange(number, number + 3)
        replay.append(rows[:, None].float(), rows[:, None])
        if number == 3:
            replay.end_block()
    assert replay.size == 5
    assert replay.block()[0][:, 0].tolist() == [7, 8, 9, 10, 11]
    replay.end_block()
    assert len(replay.block()[0]) == 0
    replay.append(torch.arange(20.0)[:, None], torch.arange(20)[:, None])
    assert replay.block()[1][:, 0].tolist() == [15, 16, 17, 18, 19]
    now, after = replay.sample(50, torch.Generator().manual_seed(0))
    assert {*(after - now).flatten().tolist()} == {1.0, -4.0}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("start", ["shared", "random"])
def test_a_row_starts_from_nothing(data: Path, tmp_path: Path, precision: str, start: str):
    """So that an id is what the shared vectors make of it; unless it shall start at random."""
    tables = {
        "user": TABLES["user"] | {"assignment": TABLES["user"]["assignment"] | {"start": start}}
    }
    job = agent_job(data, precision, embedding__tables__user=tables["user"])
    mine = trainer(job, tmp_path / "run")
    reader = open_reader(mine.job, "train", mine.device, partition=PARTITION)
    batch = next(reader.read(Position(), 1))
    rows, ids = torch.tensor([5, 9]), torch.tensor([7, 8])
    batch.fresh["user"] = Fresh(rows, ids)
    mine.fresh_rows(batch)
    table = job.embedding.resolved()["user"]
    std = 0.0 if start == "shared" else table.init_std
    wanted = first_vectors("user", ids, table.dim, std, job.train.seed)
    found = mine.fresh_rows._local["user"].read(rows)
    error = 0.0 if table.quantisation is None or not std else table.quantisation.initial_step
    torch.testing.assert_close(found, wanted, rtol=0, atol=error)
    norms = mine.fresh_rows.norms("user", torch.tensor([9, 5]))
    torch.testing.assert_close(norms, found.flip(0).norm(dim=1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__user": None}, "counts the user's next sample"),
        ({"data__reader__shuffle": True}, "set data.reader.shuffle to false, or gamma to 0"),
        ({"embedding__agent": {"critic": False, "bce": 0}}, "learns of nothing"),
        ({"balance": {"name": "pcgrad"}}, r"agent\.bce: 10\.0 takes the losses' gradient"),
        ({"features__user__kind": "ids"}, "learns by a feature of kind id"),
    ],
)
def test_refused(tmp_path: Path, overrides: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        agent_job(tmp_path, **overrides)


def test_a_data_set_without_partitions_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="autoassign learns after each partition; set 'stream'"):
        small_job(tmp_path, embedding__tables__user=TABLES["user"])
