# SPDX-License-Identifier: Apache-2.0
"""A made-up stream whose truth is known: ids come and go, and what they are drifts.

Each of two fields, user and item, has a fixed number of *places*, and each place is held by one id
at a time. Arrivals choose places by a Zipf law. Between two partitions a place changes hands with
the chance `churn`: its id never comes back, and a new one holds it. So the number of living ids is
constant, the number of all ids grows without end, and new ids may be hot from their first hour. Ids
are 64-bit hashes of (field, place, how often it has changed hands).

An id has an effect, a vector of 4 numbers with variance 1, that turns by `drift` radians a
partition in a plane of its own: after t partitions it is cos(drift t) a + sin(drift t) b, a and b
being hashes of the id. The logit is linear in the user's effect, the item's, and their product; its
deviation over all rows is `signal`. The best reachable AUC is that of the true probability, in
`dataset.json` over all rows and by partition. No learner reaches it: what a new id is, its rows
alone tell.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from deltarec.data.prepare.stream import HOUR, Events, StreamDataset, write_stream
from deltarec.data.prepare.synth import effects, judge, zipf
from deltarec.data.transforms import mix

BEGIN = 1_767_225_600
"""2026-01-01 00:00 UTC."""
FIELDS = ("user", "item")
Floats = NDArray[np.float64]


class SynthStream(StreamDataset):
    """A synthetic stream with drift and churn, one partition an hour; needs no raw files."""

    dataset: Literal["synth-stream"] = "synth-stream"
    seed: int = Field(default=0, ge=0)
    """Seed of the planted truth and of all rows."""
    rows_per_partition: int = Field(default=20_000, ge=1)
    places: list[int] = Field(default=[5_000, 2_000], min_length=2, max_length=2)
    """Users and items that live at a time."""
    zipf_exponent: float = Field(default=1.05, ge=0)
    """A place's frequency falls with its rank to this power."""
    churn: list[float] = Field(default=[0.05, 0.03], min_length=2, max_length=2)
    """Chance that a place changes hands between two partitions, of users and of items."""
    drift: float = Field(default=0.03, ge=0)
    """Radians by which effects turn from one partition to the next."""
    base_rate: float = Field(default=0.3, gt=0, lt=1)
    """About the share of positives."""
    signal: float = Field(default=2.0, ge=0)
    """Standard deviation of the logit."""

    def events(self, source: Path) -> Events:
        return self._draw()[0]

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        events, probability = self._draw()
        label = events.others["label"]
        rows = np.split(np.arange(len(label)), self.partitions)
        found = {
            "all": judge(label, probability),
            "partition": [judge(label[part], probability[part]) for part in rows],
        }
        print(f"label: best reachable: {found['all']}", file=sys.stderr, flush=True)
        return {**write_stream(events, self.partitions, target), "best": {"label": found}}

    def _draw(self) -> tuple[Events, Floats]:
        """All events in the order of time, and the probability of each one's label."""
        random = np.random.default_rng([self.seed, 0])
        count = self.partitions * self.rows_per_partition
        partition = np.repeat(np.arange(self.partitions), self.rows_per_partition)
        offset = np.sort(random.integers(0, HOUR, (self.partitions, self.rows_per_partition)))
        ids, vectors = {}, []
        for field, name in enumerate(FIELDS):
            place = zipf(random, self.places[field], self.zipf_exponent, count)
            changes = random.random((self.partitions, self.places[field])) < self.churn[field]
            holder = np.cumsum(changes, axis=0)[partition, place]
            keys = (place + (holder << 32)).astype(np.uint64)
            ids[name] = mix(mix(keys, salt=field), salt=self.seed).view(np.int64)
            angle = self.drift * partition
            first, second = (effects(self.seed, 2 * field + i, ids[name]) for i in (0, 1))
            vectors.append(np.cos(angle) * first + np.sin(angle) * second)
        user, item = vectors
        own = np.random.default_rng([self.seed, 1]).standard_normal((2, len(user)))
        logit = (own[:, :, None] * np.stack([user, item])).sum(axis=(0, 1)) / np.linalg.norm(own)
        logit = logit + (user * item).sum(axis=0) / len(user) ** 0.5
        odds = self.base_rate / (1 - self.base_rate)
        logit = (logit - logit.mean()) * self.signal / logit.std() + np.log(odds)
        probability = 1 / (1 + np.exp(-logit))
        label = (random.random(count) < probability).astype(np.int8)
        time = BEGIN + partition * HOUR + offset.reshape(-1)
        return Events(time, ids, {"label": label}), probability
