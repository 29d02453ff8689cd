# SPDX-License-Identifier: Apache-2.0
"""Items drawn for the samples of pairwise tasks.

A draw is a hash of (seed, epoch, row of the dataset, task, number): it belongs to the sample, not
to the process that draws it, nor to the step at which a restarted job comes by. The sample's own
item is never drawn. Others that belong to the query are drawn as often as any; they are not looked
for.

Items are equally likely, or in proportion to a power of how often the task has them in train:
Mikolov et al., Distributed Representations of Words and Phrases and their Compositionality,
NeurIPS 2013, with power 0.75.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from deltarec.data.block import Block, Ragged
from deltarec.data.schema import NegativeFeature, Schema
from deltarec.data.transforms import mix

WHOLE = (1 << 32) - 1
"""Sum of the integers that weights become, at most."""


class Negatives:
    """Draws the negatives of a job.

    Args:
        schema: with the pairwise tasks.
        seed: of the draws.
        counts: of each task with a `negative_power`, int64 `[items]`: its samples by their item.

    Raises:
        ValueError: all samples of a task with a power have one item.
    """

    def __init__(self, schema: Schema, seed: int, counts: Mapping[str, np.ndarray]) -> None:
        self.schema = schema
        self.seed = seed
        self._upto: dict[str, np.ndarray] = {}
        for name, task in schema.tasks.items():
            if not task.negative_power or not counts[name].any():
                continue
            if np.count_nonzero(counts[name]) == 1:
                raise ValueError(
                    f"tasks.{name}.negative_power: all samples of train have the same item, and no "
                    "other would be drawn; leave it out"
                )
            self._upto[name] = cumulative(counts[name], task.negative_power)

    def add_to(self, block: Block, epoch: int) -> Block:
        """The block with a list of one id for each negative of each sample whose task lives."""
        drawn = {name: self._draw(block, f, epoch) for name, f in self.schema.drawn.items()}
        return replace(block, ragged={**block.ragged, **drawn}) if drawn else block

    def _draw(self, block: Block, negative: NegativeFeature, epoch: int) -> Ragged:
        task = list(self.schema.tasks).index(negative.task)
        lives = block.flat["mask"][:, task]
        name = self.schema.tasks[negative.task].item[0]
        items = block.ids[name][lives] if name in block.ids else _given(block.ragged[name], lives)
        key = zlib.crc32(negative.task.encode()) << 32 | negative.number
        bits = hashed(block.flat["index"][lives], self.seed, epoch, key)
        upto = self._upto.get(negative.task)
        if upto is None:
            ids = uniform(bits, self.schema.num_items(negative.task) - 1)
            ids += ids >= items
        else:
            ids = weighted(bits, upto, items)
        return Ragged(ids, lives.astype(np.int64))


def cumulative(counts: np.ndarray, power: float) -> np.ndarray:
    """Int64 `[n + 1]` from 0, whose steps are as `counts ** power`; only a count of 0 has none."""
    weights = counts.astype(np.float64) ** power
    steps = np.floor(weights * ((WHOLE - len(counts)) / weights.sum())).astype(np.int64)
    return np.append(0, np.maximum(steps, counts > 0).cumsum())


def weighted(bits: np.ndarray, upto: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Random uint64 to places int64 in the steps of `upto`, each in proportion to its step.

    `without` is for each the place that is not drawn: of the whole range its step is left out.
    """
    start = upto[without]
    step = upto[without + 1] - start
    point = uniform(bits, upto[-1] - step)
    point += np.where(point >= start, step, 0)
    return np.searchsorted(upto, point, side="right") - 1


def hashed(values: np.ndarray, *keys: int) -> np.ndarray:
    """Random-looking uint64 of integers `[n]` and keys, by the finaliser of SplitMix64."""
    state = np.zeros((), dtype=np.uint64)
    for key in keys:
        state = mix(state ^ np.array(key, dtype=np.uint64), salt=0)
    return mix(mix(values.astype(np.uint64), salt=0) ^ state, salt=0)


def uniform(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Random uint64 to int64 below `bound`, which is below 2**32."""
    whole = np.asarray(bound, dtype=np.uint64)
    return ((bits >> np.uint64(32)) * whole >> np.uint64(32)).astype(np.int64)


def _given(ids: Ragged, wanted: np.ndarray) -> np.ndarray:
    """The ids of the wanted samples, each of which has one."""
    return ids.values[wanted[ids.lengths > 0]]
