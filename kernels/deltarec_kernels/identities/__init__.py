# SPDX-License-Identifier: Apache-2.0
"""The lives of ids that an agent gives rows to: what is known of them, and one batch's step.

Whatever is known of an id is in a *place*, and a place may have a row. Places are cut into buckets,
as the rows are; a bucket's rows wait in a queue, in the order in which they are given away. A batch
sights each of its ids: places that are new to them begin anew, sightings are counted, and ids that
are without a row, were seen often enough and are worth it take the next ones, in the order of their
hashes: rows that nobody has, and those of ids that were not seen since the queue was made.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltarec_kernels.identities import reference
from deltarec_kernels.identities.reference import with_rows_only
from deltarec_kernels.registration import register

__all__ = ["STATE", "Lives", "Sighted", "act", "explore", "with_rows_only"]

STATE = 8
"""Numbers of a state."""


class Sighted(NamedTuple):
    """What a batch did to the lives of ids."""

    promoted: Tensor
    """Int64 `[new]`: which of the ids have got a row."""
    places: Tensor
    """Int64 `[changed]`: what they were before is"""
    marks: Tensor
    """int32 `[changed, 2]` and"""
    traces: Tensor
    """float32 `[changed, 5]`."""


class Lives(NamedTuple):
    """What is known of the ids of a table, on one rank, apart from what `IdMap` has."""

    uses: Tensor
    """Int32 `[places, 3]` of `IdMap`: sightings, score, step of the last one."""
    marks: Tensor
    """Int32 `[places, 2]`: the step of the first sighting; the row, counted from the bucket's
    first, or -1."""
    traces: Tensor
    """Float32 `[places, 5]`: recent sightings; the moving averages of loss and error; the row's
    norm; the moving average of retention."""
    counts: Tensor
    """Int64 `[buckets, 4]`: where the queue goes on; rows given and taken so far; the step when it
    was made."""
    queue: Tensor
    """Int32 `[buckets, rows of one]`: rows, counted from the bucket's first."""
    holders: Tensor
    """Int32 of that shape: the places that had them when the queue was made, counted likewise; or
    -1 for nobody, -2 if the row is not to be given."""

    def states(self, places: Tensor, step: int) -> Tensor:
        """What an agent sees of ids.

        Args:
            places: theirs, int64 `[n]`, or -1.
            step: now.

        Returns:
            Float32 `[n, 8]`, the logarithms of 1 + sightings, recent sightings, steps since the
            last and since the first one; loss, error, norm; whether there is a row. Zeros for -1.
        """
        return _states(list(self), places, step)

    def answers(self, places: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """What is said of ids to those who ask.

        Args:
            places: theirs, int64 `[n]`, or -1.
            states: float32 `[n, 8]`.
            actions: float32 `[n, K + 1]`.

        Returns:
            Float32 `[n, 1 + 8 + K + 1]`: the bits of the row, int32, counted from this rank's
            first, or -1; state; action, with p 0 where there is no row.
        """
        return _answers(list(self), places, states, actions)

    def sight(
        self,
        ids: Tensor,
        places: Tensor,
        fresh: Tensor,
        sightings: Tensor,
        retention: Tensor,
        step: int,
        admit_after: int,
        promote_at: float,
    ) -> Sighted:
        """Sight the ids of a batch.

        Args:
            ids: distinct, int64 `[n]`.
            places: theirs, int64 `[n]`, or -1.
            fresh: the places that had other ids before, int64 `[fresh]`.
            sightings: of each id in the batch, int64 `[n]`.
            retention: what a row is worth to the id, float32 `[n]`.
            step: the batch's.
            admit_after: sightings that a row takes.
            promote_at: the retention that it takes.
        """
        batch = (ids, places, fresh, sightings, retention, step)
        return Sighted(*_sight(list(self), *batch, admit_after, promote_at))


def act(states: Tensor, actor: list[Tensor]) -> Tensor:
    """What an actor does with ids: α and p, each id for itself, without gradients.

    Args:
        states: float32 `[n, 8]`, of which the last number is not seen.
        actor: the field's vector `[F]`; weights and bias of two layers with ReLU, `[H1, 7 + F]`,
            `[H1]`, `[H2, H1]`, `[H2]`; those of the field's head, `[K + 1, H2]`, `[K + 1]`.

    Returns:
        Float32 `[n, K + 1]`: the softmax of the first K, the sigmoid of the last.
    """
    return _act(states, actor)


def explore(actions: Tensor, bits: Tensor, noise: float, retention: bool) -> None:
    """Move actions in place: α towards one of its vertices, p up or down.

    Args:
        actions: float32 `[n, K + 1]`.
        bits: random int64 `[n]`.
        noise: how far, at most.
        retention: whether p is moved too.
    """
    _explore(actions, bits, noise, retention)


def _fake_sight(
    lives: list[Tensor], ids: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    promoted, changed = context.new_dynamic_size(), context.new_dynamic_size()
    marks, traces = (tensor.new_empty(changed, tensor.shape[1]) for tensor in lives[1:3])
    return ids.new_empty(promoted), ids.new_empty(changed), marks, traces


_states = register(
    "identity_states(Tensor[] lives, Tensor places, int step) -> Tensor",
    reference.identity_states,
    lambda lives, places, step: lives[2].new_empty(len(places), STATE),
    None,
)
_act = register(
    "identity_actions(Tensor states, Tensor[] actor) -> Tensor",
    reference.identity_actions,
    lambda states, actor: states.new_empty(len(states), len(actor[-1])),
    None,
)
_explore = register(
    "explore(Tensor(a!) actions, Tensor bits, float noise, bool retention) -> ()",
    reference.explore,
    lambda actions, bits, noise, retention: None,
    None,
)
_answers = register(
    "identity_answers(Tensor[] lives, Tensor places, Tensor states, Tensor actions) -> Tensor",
    reference.identity_answers,
    lambda lives, places, states, actions: states.new_empty(
        len(places), 1 + STATE + actions.shape[1]
    ),
    None,
)
_sight = register(
    "sight(Tensor(a!)[] lives, Tensor ids, Tensor places, Tensor fresh, Tensor sightings, "
    "Tensor retention, int step, int admit_after, float promote_at) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.sight,
    _fake_sight,
    None,
)
