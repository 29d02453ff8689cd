# SPDX-License-Identifier: Apache-2.0
"""The assignment of ids to rows in plain Python: what the C++ operators compute, slowly.

A map is a list of tensors `[keys, uses, index, heap]`. Its state are the first two: `keys`, int64
`[rows]`, and `uses`, int32 `[rows, 3]`: how often the row's id was seen, its score, and the step in
which it was seen last. A count of 0 means that the row is free, -1 that it is given to nobody. The
other two serve the C++ alone, which makes them from the state.

The map is cut into buckets of as many rows each, and an id belongs to the bucket that its hash
names. A row of `summaries`, int64 `[buckets, 4]`, is a bucket's step number, the score that LFU
starts from, its rows in use, and how often it has given a row to an id.
"""

import torch
from torch import Tensor

_MASK = 2**64 - 1
_MOST = 2**31 - 1


def assign(
    main: list[Tensor],
    candidates: list[Tensor],
    summaries: Tensor,
    first_bucket: int,
    num_buckets: int,
    ids: Tensor,
    counts: Tensor,
    evict: str,
    horizon: int,
    ageing: bool,
    admit_after: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give rows to the ids of one step; see `IdMap.assign`."""
    rows = _Map(main, len(summaries))
    waiting = _Map(candidates, len(summaries))
    step = int(summaries[0, 0]) + 1
    summaries[:, 0] = step
    sightings: dict[int, int] = {}
    for key, count in zip(ids.tolist(), counts.tolist(), strict=True):
        sightings[key] = sightings.get(key, 0) + count
    buckets = {key: bucket(key, num_buckets) - first_bucket for key in sightings}
    assert all(0 <= b < len(summaries) for b in buckets.values())

    def expired(row: int) -> bool:
        return evict == "timed" and rows.uses[row][2] + horizon < step

    def score(b: int, count: int) -> int:
        if evict == "lfu":
            return min(int(summaries[b, 1]) + count, _MOST)
        return 0 if evict == "none" else step

    def give_row(key: int, b: int) -> int | None:
        """The id's own expired row, else the bucket's next if it is free or may be taken."""
        if key in rows.places:
            return rows.places[key]
        row = rows.first(b, step)
        if row is None:
            return None
        if rows.uses[row][0] > 0:
            if evict not in ("lru", "lfu") and not expired(row):
                return None
            if ageing:
                summaries[b, 1] = max(int(summaries[b, 1]), rows.uses[row][1])
            summaries[b, 2] -= 1
        summaries[b, 2] += 1
        return row

    found: dict[int, int] = {}
    missing = []
    for key, count in sightings.items():
        row = rows.places.get(key)
        if row is None or expired(row):
            missing.append(key)
            continue
        found[key] = row
        total = min(rows.uses[row][0] + count, _MOST)
        rows.write(row, key, total, score(buckets[key], total), step)

    fresh = []
    for key in sorted(missing, key=mix):
        b, total = buckets[key], sightings[key]
        candidate = waiting.places.get(key) if admit_after > 1 else None
        if candidate is not None:
            total += waiting.uses[candidate][0]
        row = give_row(key, b) if total >= admit_after else None
        if row is not None:
            rows.write(row, key, min(total, _MOST), score(b, total), step)
            summaries[b, 3] += 1
            fresh.append(row)
            if candidate is not None:
                waiting.write(candidate, 0, 0, *waiting.uses[candidate][1:])
        elif admit_after > 1:
            if candidate is None:
                candidate = waiting.first(b, step)
            if candidate is not None:
                waiting.write(candidate, key, min(total, _MOST), step, step)
        found[key] = -1 if row is None else row
    return (
        torch.tensor([found[key] for key in ids.tolist()], dtype=torch.int64),
        torch.tensor(fresh, dtype=torch.int64),
        rows.finish(),
        waiting.finish(),
    )


def find_assigned(
    main: list[Tensor],
    summaries: Tensor,
    first_bucket: int,
    num_buckets: int,
    ids: Tensor,
    horizon: int,
) -> Tensor:
    """The rows that ids have, -1 for none; see `IdMap.find`."""
    rows = _Map(main, len(summaries))
    step = int(summaries[0, 0])
    found = [rows.places.get(key, -1) for key in ids.tolist()]
    known = [row >= 0 and (horizon < 0 or rows.uses[row][2] + horizon >= step) for row in found]
    return torch.tensor(
        [row if is_known else -1 for row, is_known in zip(found, known, strict=True)],
        dtype=torch.int64,
    )


def build_assignment(main: list[Tensor], buckets: int) -> None:
    """Nothing: the reference reads the state itself."""


def deduplicate(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids in order of appearance, each id's number among them, and their counts."""
    numbers: dict[int, int] = {}
    inverse = [numbers.setdefault(key, len(numbers)) for key in ids.tolist()]
    counts = torch.bincount(torch.tensor(inverse, dtype=torch.int64), minlength=len(numbers))
    return (
        torch.tensor(list(numbers), dtype=torch.int64),
        torch.tensor(inverse, dtype=torch.int64),
        counts,
    )


def mix(key: int) -> int:
    """SplitMix64's hash of an id (Steele et al., 2014), below 2^64; a bijection."""
    x = (key + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def bucket(key: int, num_buckets: int) -> int:
    """The bucket of an id."""
    return (mix(key) >> 32) * num_buckets >> 32


class _Map:
    """A map's state in lists, and what was there before the first change of each row."""

    def __init__(self, tensors: list[Tensor], num_buckets: int) -> None:
        self.tensors = tensors[:2]
        self.keys: list[int] = tensors[0].tolist()
        self.uses: list[list[int]] = tensors[1].tolist()
        self.capacity = len(self.keys) // num_buckets
        self.places = {
            key: row
            for row, (key, use) in enumerate(zip(self.keys, self.uses, strict=True))
            if use[0] > 0
        }
        self.before: dict[int, list[int]] = {}

    def first(self, b: int, step: int) -> int | None:
        """The row of a bucket to give away next; none that an id of this step has."""
        rows = []
        for row in range(b * self.capacity, (b + 1) * self.capacity):
            count, score, seen = self.uses[row]
            if count == 0 or (count > 0 and seen != step):
                rows.append((score, seen, row))
        return min(rows)[2] if rows else None

    def write(self, row: int, key: int, count: int, score: int, seen: int) -> None:
        self.before.setdefault(row, [self.keys[row], *self.uses[row]])
        if self.uses[row][0] > 0:
            del self.places[self.keys[row]]
        self.keys[row], self.uses[row] = key, [count, score, seen]
        if count > 0:
            self.places[key] = row

    def finish(self) -> Tensor:
        """Write the state back; returns the log."""
        for tensor, values in zip(self.tensors, (self.keys, self.uses), strict=True):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype).reshape(tensor.shape))
        entries = [[row, *values] for row, values in self.before.items()]
        return torch.tensor(entries, dtype=torch.int64).reshape(-1, 5)
