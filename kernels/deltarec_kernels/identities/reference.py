# SPDX-License-Identifier: Apache-2.0
"""A step in the lives of ids, plainly: what the C++ operators compute, slowly.

What is known of the ids is a list of tensors `[uses, marks, traces, counts, queue, holders]`; see
`Lives`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deltarec_kernels.assign.reference import mix
from deltarec_kernels.identities.columns import (
    FIRST,
    GIVEN,
    LOSS,
    NEVER,
    NEXT,
    NORM,
    RECENT,
    RETENTION,
    REVIEWED,
    ROW,
    TAKEN,
)


def identity_states(lives: list[Tensor], places: Tensor, step: int) -> Tensor:
    """What an agent sees of the ids of places; see `Lives.states`."""
    known, at = places >= 0, places.clamp(min=0)
    uses, marks, traces = (tensor[at] for tensor in lives[:3])
    ages = step - torch.stack([uses[:, 2], marks[:, FIRST]], 1)
    counts = [uses[:, :1].float(), traces[:, : RECENT + 1], ages.float()]
    has_row = (marks[:, ROW:] >= 0).float()
    states = torch.cat([torch.cat(counts, 1).log1p_(), traces[:, LOSS : NORM + 1], has_row], 1)
    return states.masked_fill_(~known[:, None], 0)


def identity_actions(states: Tensor, actor: list[Tensor]) -> Tensor:
    """What an actor does with ids; see `act`."""
    field, weight, bias, *rest = actor
    seen = states[:, :-1]
    inputs = torch.cat([seen, field.expand(len(seen), -1)], 1)
    h = F.linear(inputs, weight, bias).relu()
    h = F.linear(h, *rest[:2]).relu()
    found = F.linear(h, *rest[2:])
    return torch.cat([found[:, :-1].softmax(1), found[:, -1:].sigmoid()], 1)


def explore(actions: Tensor, bits: Tensor, noise: float, retention: bool) -> None:
    """Move actions, in place; see `explore` of the package."""
    shared = actions.shape[1] - 1
    vertex = (bits >> 32 & 0xFFFF) * shared >> 16
    actions[:, :-1] *= 1 - noise
    actions[:, :-1].scatter_add_(1, vertex[:, None], torch.full((len(bits), 1), noise))
    if retention:
        shift = (bits & 0xFFFF).float() / 2**15 - 1
        actions[:, -1].add_(shift, alpha=noise).clamp_(0, 1)


def identity_answers(
    lives: list[Tensor], places: Tensor, states: Tensor, actions: Tensor
) -> Tensor:
    """What is said of ids; see `Lives.answers`."""
    _, marks, _, _, queue, _ = lives
    num_buckets, capacity = queue.shape
    at = places.clamp(min=0)
    row = marks[at, ROW]
    rows = at // (len(marks) // num_buckets) * capacity + row
    rows = torch.where((places >= 0) & (row >= 0), rows, -1).int()[:, None]
    return torch.cat([rows.view(torch.float32), states, with_rows_only(actions, states)], 1)


def with_rows_only(actions: Tensor, states: Tensor) -> Tensor:
    """Actions `[n, K + 1]` with p̃ for p: 0 where the id has no row."""
    return torch.cat([actions[:, :-1], actions[:, -1:] * states[:, -1:]], 1)


def sight(
    lives: list[Tensor],
    ids: Tensor,
    places: Tensor,
    fresh: Tensor,
    sightings: Tensor,
    retention: Tensor,
    step: int,
    admit_after: int,
    promote_at: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sight the ids of a batch; see `Lives.sight`."""
    uses, marks, traces, counts, queue, holders = lives
    num_buckets, capacity = queue.shape
    size = len(marks) // num_buckets
    """Of a bucket, in places."""
    log: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> None:
        log[place] = (marks[place].clone(), traces[place].clone())

    def evict(place: int) -> None:
        counts[place // size, TAKEN] += 1
        marks[place, ROW] = -1
        traces[place, NORM] = 0

    def next_row(bucket: int) -> int:
        """The next one that is nobody's, or that of an id which this partition has not seen."""
        while counts[bucket, NEXT] < capacity:
            turn = int(counts[bucket, NEXT])
            counts[bucket, NEXT] += 1
            row, holder = int(queue[bucket, turn]), int(holders[bucket, turn])
            if holder == NEVER:
                continue
            place = bucket * size + holder
            if holder >= 0 and marks[place, ROW] == row:
                if uses[place, 2] > counts[bucket, REVIEWED]:
                    continue
                keep(place)
                evict(place)
            return row
        return -1

    for place in places[places >= 0].tolist():
        keep(place)
    for place in fresh.tolist():
        if marks[place, ROW] >= 0:
            evict(place)
        marks[place, FIRST] = step
        traces[place] = 0
    wishes: list[tuple[int, int]] = []
    for number, (key, place) in enumerate(zip(ids.tolist(), places.tolist(), strict=True)):
        if place < 0:
            continue
        traces[place, RECENT] += sightings[number]
        admitted = uses[place, 0] >= admit_after and retention[number] >= promote_at
        if marks[place, ROW] < 0 and admitted:
            wishes.append((mix(key), number))
    promoted: list[int] = []
    for _, number in sorted(wishes):
        place = int(places[number])
        if (row := next_row(place // size)) >= 0:
            marks[place, ROW] = row
            traces[place, RETENTION] = retention[number]
            counts[place // size, GIVEN] += 1
            promoted.append(number)
    before = list(log.values())
    return (
        torch.tensor(promoted, dtype=torch.int64),
        torch.tensor(list(log), dtype=torch.int64),
        torch.stack([mark for mark, _ in before]) if log else marks[:0].clone(),
        torch.stack([trace for _, trace in before]) if log else traces[:0].clone(),
    )
