# SPDX-License-Identifier: Apache-2.0
"""AutoAssign+'s identity agent: what an id is to the model, learned by actor and critics.

AutoAssign+ (Liu et al.) is known to us by its abstract: an actor represents the rare ids of a field
by a few shared vectors and decides which ids keep rows, and a critic guides it. The equations are
our reconstruction of that; RMTL (Liu et al., 2023), of the same first author, gave the numbers.

Of an id i the agent sees the state (`identities.py` keeps what it is made of)

    s = [log(1 + sightings), log(1 + recent sightings), log(1 + steps since the last),
         log(1 + steps since the first), moving averages of the loss and of label - prediction,
         |r_i|, has a row]

and the actor, a trunk that all fields share with two heads for each field f, finds of all but the
last of these

    h = trunk(s, v_f)     α = softmax(W_f h)     p = sigmoid(w_f · h)

The model then sees `αᵀS_f + p̃ r_i`, with p̃ = p if i has a row r_i of its own, else 0
(`layers/shared_rows.py`). A sample is a transition of its user: its states and actions are those of
its ids, its reward is `-BCE - β mean_f p̃_f`, and the next one is the user's next sample of the
partition, or none. After each partition

    critics   (Q_j(s, a) - [r + γ (1 - done) min_j Q'_j(s', μ'(s') + noise)])²      j = 1, 2
    actor     -Q_1(s, μ(s)) + λ [g · μ(s) + c/2 |μ(s) - a|² + β mean_f p̃_f]       g = ∂BCE/∂a
    slow      Q' ← Q' + τ (Q - Q'),   μ' ← μ' + τ (μ - μ')

are minimised on a replay of such transitions. In the partition the actor is frozen, so λ's term,
BCE through the soft path, is its first order, as far as it can be trusted: g was found by the
model's own backward, at a.

All of it is the same on all ranks: they gather the transitions and learn alike.
"""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.data.batch import Batch
from deltarec.data.schema import IdFeature, Schema
from deltarec.distributed import gather_rows, world_size
from deltarec.embeddings.policies import AgentConfig, AutoAssign, autoassigned
from deltarec.embeddings.replay import Replay
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels import identities
from deltarec_kernels.identities import STATE, with_rows_only

HAS_ROW = STATE - 1
"""The last one of them."""
FIELD = 8
"""Numbers of v_f."""
HIDDEN = (64, 32)


class Actor(nn.Module):
    """μ: what is done with an id, by its state.

    Args:
        shared: of each table, the number of its shared vectors.
    """

    def __init__(self, shared: Mapping[str, int]) -> None:
        super().__init__()
        self.fields = nn.ParameterDict({name: torch.randn(FIELD) for name in shared})
        self.trunk = nn.Sequential(
            nn.Linear(HAS_ROW + FIELD, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({n: nn.Linear(HIDDEN[1], k + 1) for n, k in shared.items()})
        for head in self.heads.values():
            nn.init.constant_(head.bias[-1:], 2.0)  # pyright: ignore  # p is .9 at first

    def forward(self, table: str, states: Tensor) -> Tensor:
        """α and p, `[n, K + 1]`, of states `[n, 8]`; p as if every id had a row."""
        first, *rest = self.trunk
        # v_f is the same for all: its product with the weights is a bias.
        bias = F.linear(self.fields[table], first.weight[:, HAS_ROW:], first.bias)  # pyright: ignore
        h = F.linear(states[:, :HAS_ROW], first.weight[:, :HAS_ROW], bias)  # pyright: ignore
        for layer in rest:
            h = layer(h)
        found = self.heads[table](h)
        return torch.cat([found[:, :-1].softmax(1), found[:, -1:].sigmoid()], 1)

    def parameters_of(self, table: str) -> list[Tensor]:
        """What `deltarec_kernels.identities.act` wants."""
        layers = (self.trunk[0], self.trunk[2], self.heads[table])
        own = [parameter.detach() for layer in layers for parameter in layer.parameters()]
        return [self.fields[table].detach(), *own]


class Critics(nn.Module):
    """Q_1 and Q_2, of what a sample's ids are, what is done with them, and its other features.

    Args:
        width: of all that.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, *HIDDEN, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for ins, outs in pairwise(widths):
            bound = ins**-0.5
            self.weights.append(torch.empty(2, ins, outs).uniform_(-bound, bound))
            self.biases.append(torch.zeros(2, 1, outs))
        # Without an opinion at first, which the actor would follow.
        nn.init.zeros_(self.weights[-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """`[n, width]` to `[2, n]`."""
        x = inputs.expand(2, *inputs.shape)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias, x if weight is self.weights[0] else x.relu(), weight)
        return x.squeeze(2)


class Observed(NamedTuple):
    """What the model's forward and backward leave for the agent."""

    actions: dict[str, Tensor]
    """Of each feature `[n, K + 1]`, with the loss's gradient."""
    context: Tensor
    """`[B, C]`, what critics see of the other features."""


class Agent:
    """Actor, critics and replay; no module, so that nobody else trains, shards or averages it.

    Args:
        config: how it learns.
        schema: features and tasks.
        tables: every table.
        seed: of the first weights, and of all that is drawn.
    """

    def __init__(
        self, config: AgentConfig, schema: Schema, tables: Mapping[str, TableSpec], seed: int
    ) -> None:
        self.config = config
        self.seed = seed
        self.policies = autoassigned(tables)
        self.tables = agent_fields(schema, self.policies)
        self.binary = [t for t, task in enumerate(schema.tasks.values()) if task.kind == "binary"]
        sizes = [self.policies[table].shared + 1 for table in self.tables.values()]
        context = sum(context_features(schema, tables, self.policies)) + len(schema.dense)
        states = STATE * len(sizes)
        self._parts = [states, sum(sizes), sum(sizes), context, 1, 1, 1]
        """Of a transition: states, actions, their gradients, context, error, reward, done."""
        self._sizes = sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor({n: p.shared for n, p in self.policies.items()})
            self.critics = Critics(states + sum(sizes) + context)
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self._actor_optimizer = _adam(self.actor, config.actor_lr)
        self._critic_optimizer = _adam(self.critics, config.critic_lr)
        self.replay = Replay(config.replay, sum(self._parts), 2 + len(sizes))
        self.counters = torch.zeros(3, dtype=torch.int64)
        """Partitions learned from, updates, steps of this partition."""
        self.losses = torch.zeros(2)
        """Of critics and actor, the means of the last partition's updates."""

    def logged(self) -> dict[str, float]:
        """The losses of the last partition, if there was one."""
        critic, actor = self.losses.tolist()
        found = {"agent/critic_loss": critic, "agent/actor_loss": actor}
        return found if self.counters[0] else {}

    def act(self, table: str, states: Tensor) -> Tensor:
        """α and p of ids of a table, `[n, K + 1]`; p as if they had rows."""
        actions = identities.act(states, self.actor.parameters_of(table))
        if self.policies[table].retention == "frequency":
            actions[:, -1] = 1
        return actions

    def explore(self, table: str, actions: Tensor, bits: Tensor) -> None:
        """Move actions `[n, K + 1]` away from the actor's, in place, by random int64 `[n]`."""
        if self.config.noise:
            retention = self.policies[table].retention == "agent"
            identities.explore(actions, bits, self.config.noise, retention)

    def observe(self, batch: Batch, logits: Tensor, observed: Observed) -> None:
        """Keep the transitions of a batch that was trained; a collective.

        Args:
            batch: this rank's, on CPU.
            logits: `[B, T]`.
            observed: of its forward and backward.
        """
        fields = list(self.tables)
        real = len(batch.identities[fields[0]].ids)
        labels, mask = batch.labels[:real, self.binary], batch.mask[:real, self.binary]
        logits = logits[:real, self.binary].float().cpu()
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        present = mask.sum(1).clamp(min=1)
        loss = (bce * mask).sum(1) / present
        error = ((labels - logits.sigmoid()) * mask).sum(1) / present
        actions = [batch.identities[name].actions for name in fields]
        scale = batch.num_samples / world_size()  # the loss was a mean
        gradients = [_gradient(observed.actions[name]).cpu() * scale for name in fields]
        price = torch.stack([a[:, -1] for a in actions]).mean(0) * self.config.row_price
        found = torch.cat(
            [
                *(batch.identities[name].states for name in fields),
                *actions,
                *gradients,
                observed.context[:real].cpu(),
                error.unsqueeze(1),
                -(loss + price).unsqueeze(1),
                loss.new_ones(real, 1),
            ],
            1,
        )
        user = batch.user[:real] if len(batch.user) else batch.index[:real]
        keys = [batch.index[:real], user, *(batch.identities[name].ids for name in fields)]
        self.replay.append(*_of_all_ranks(found, torch.stack(keys, 1), len(batch.index)))
        self.counters[2] += 1

    def outcomes(self) -> tuple[dict[str, Tensor], Tensor]:
        """Of this partition's samples: ids `[n]` by feature; losses and errors `[n, 2]`."""
        records, keys = self.replay.block()
        _, actions, _, _, error, reward, _ = records.split(self._parts, 1)
        paid = torch.stack([a[:, -1] for a in actions.split(self._sizes, 1)]).mean(0)
        losses = -reward[:, 0] - paid * self.config.row_price
        outcomes = torch.stack([losses, error[:, 0]], 1)
        return {name: keys[:, 2 + i] for i, name in enumerate(self.tables)}, outcomes

    def learn(self) -> None:
        """Learn from the replay, after a partition."""
        self._link()
        config, (partitions, done, steps) = self.config, self.counters.tolist()
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + partitions)
        updates = max(1, steps // config.update_every) if self.replay.size else 0
        losses: list[tuple[float, float]] = []
        for update in range(done, done + updates):
            now, after = self.replay.sample(config.batch_size, draw)
            critic = self._learn_critics(now, after, draw) if config.critic else 0.0
            actor = self._learn_actor(now) if partitions >= config.warmup else 0.0
            if update % 2:
                _follow(self.slow_critics, self.critics, config.follow)
                _follow(self.slow_actor, self.actor, config.follow)
            losses.append((critic, actor))
        self.replay.end_block()
        self.counters.copy_(torch.tensor([partitions + 1, done + updates, 0]))
        if losses:
            self.losses.copy_(torch.tensor(losses).mean(0))

    def tensors(self) -> dict[str, Tensor]:
        """All its state, the same on all ranks, by name; to be loaded in place."""
        networks = {
            "actor": self.actor,
            "critics": self.critics,
            "slow_actor": self.slow_actor,
            "slow_critics": self.slow_critics,
        }
        found = {
            f"{name}.{key}": value.detach()
            for name, network in networks.items()
            for key, value in network.named_parameters()
        }
        for name, optimizer in (
            ("actor_adam", self._actor_optimizer),
            ("critic_adam", self._critic_optimizer),
        ):
            for number, state in enumerate(optimizer.state.values()):
                found |= {f"{name}.{number}.{key}": value for key, value in state.items()}
        replay = {f"replay.{key}": value for key, value in self.replay.tensors().items()}
        return found | replay | {"counters": self.counters, "losses": self.losses}

    def _link(self) -> None:
        """Put the partition's transitions in order: by user, then by time; each user's last ends.

        A transition is then followed by the user's next one.
        """
        if not self.config.gamma:
            return
        records, keys = self.replay.block()
        order = keys[:, 0].argsort(stable=True)
        order = order[keys[order, 1].argsort(stable=True)]
        records, keys = records[order], keys[order]
        records[:-1, -1] = (keys[1:, 1] != keys[:-1, 1]).float()
        self.replay.write_block(records, keys)

    def _learn_critics(self, now: Tensor, after: Tensor, draw: torch.Generator) -> float:
        states, actions, _, context, _, reward, done = now.split(self._parts, 1)
        target = reward[:, 0]
        if self.config.gamma:
            with torch.no_grad():
                later, _, _, other, *_ = after.split(self._parts, 1)
                bits = torch.randint(2**62, (len(now),), generator=draw)
                chosen = self._policy(self.slow_actor, later, bits)
                found = self.slow_critics(torch.cat([later, chosen, other], 1)).amin(0)
                target = target + self.config.gamma * (1 - done[:, 0]) * found
        values = self.critics(torch.cat([states, actions, context], 1))
        loss = (values - target).square().mean(1).sum()
        _minimise(loss, self._critic_optimizer)
        return float(loss.detach())

    def _learn_actor(self, now: Tensor) -> float:
        states, taken, gradients, context, *_ = now.split(self._parts, 1)
        actions = self._policy(self.actor, states)
        loss = actions.new_zeros(())
        if self.config.critic:
            self.critics.requires_grad_(False)
            loss = loss - self.critics(torch.cat([states, actions, context], 1))[0].mean()
            self.critics.requires_grad_(True)
        if self.config.bce:
            kept = torch.stack([a[:, -1] for a in actions.split(self._sizes, 1)]).mean()
            moved = actions - taken
            bce = (gradients * actions + self.config.trust / 2 * moved.square()).sum(1).mean()
            loss = loss + self.config.bce * (bce + self.config.row_price * kept)
        _minimise(loss, self._actor_optimizer)
        return float(loss.detach())

    def _policy(self, actor: Actor, states: Tensor, bits: Tensor | None = None) -> Tensor:
        """An actor's actions `[n, sum of K + 1]` in the states of samples; with noise by bits."""
        found = []
        for table, own in zip(self.tables.values(), states.split(STATE, 1), strict=True):
            actions = actor(table, own)
            if self.policies[table].retention == "frequency":
                actions = torch.cat([actions[:, :-1], torch.ones_like(actions[:, -1:])], 1)
            if bits is not None:
                self.explore(table, actions, bits)
            found.append(with_rows_only(actions, own))
        return torch.cat(found, 1)


def agent_fields(schema: Schema, policies: Mapping[str, AutoAssign]) -> dict[str, str]:
    """The features whose ids are part of a transition, and their tables."""
    return {
        name: schema.table(name)
        for name, feature in schema.sparse.items()
        if isinstance(feature, IdFeature) and schema.table(name) in policies
    }


def context_features(
    schema: Schema, tables: Mapping[str, TableSpec], policies: Mapping[str, AutoAssign]
) -> dict[int, list[str]]:
    """The other features of a sample, by the width of their vectors; critics see their means."""
    found: dict[int, list[str]] = {}
    for name in schema.trained:
        if name not in schema.sequences and schema.table(name) not in policies:
            found.setdefault(tables[schema.table(name)].dim, []).append(name)
    return found


def _gradient(actions: Tensor) -> Tensor:
    return torch.zeros_like(actions) if actions.grad is None else actions.grad


def _of_all_ranks(records: Tensor, keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The transitions of all ranks, in the order of their first keys, the samples' rows."""
    if world_size() > 1:
        missing = size - len(keys)
        keys = gather_rows(F.pad(keys, (0, 0, 0, missing), value=-1))
        records = gather_rows(F.pad(records, (0, 0, 0, missing)))
    order = keys[:, 0].argsort(stable=True)
    order = order[int((keys[:, 0] < 0).sum()) :]
    return records[order], keys[order]


def _adam(network: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam that has its state before the first step, so that it can be loaded."""
    optimizer = torch.optim.Adam(network.parameters(), lr, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def _minimise(loss: Tensor, optimizer: torch.optim.Adam) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _follow(slow: nn.Module, fast: nn.Module, share: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), share)
