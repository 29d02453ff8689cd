# SPDX-License-Identifier: Apache-2.0
"""Items drawn for the samples of pairwise tasks.

A draw is a hash of (seed, epoch, row of the dataset, task, number): it belongs to the sample, not
to the process that draws it, nor to the step at which a restarted job comes by. All items are
equally likely but the sample's own, which is never drawn. Others that belong to the query are drawn
as rarely as they are few; they are not looked for.
"""

import zlib
from dataclasses import replace

import numpy as np

from deltarec.data.block import Block, Ragged
from deltarec.data.schema import NegativeFeature, Schema
from deltarec.data.transforms import mix


def with_negatives(block: Block, schema: Schema, seed: int, epoch: int) -> Block:
    """The block with a list of one id for each negative of each sample on which its task lives."""
    drawn = {name: _draw(block, schema, f, seed, epoch) for name, f in schema.drawn.items()}
    return replace(block, ragged={**block.ragged, **drawn}) if drawn else block


def _draw(block: Block, schema: Schema, negative: NegativeFeature, seed: int, epoch: int) -> Ragged:
    task = list(schema.tasks).index(negative.task)
    lives = block.flat["mask"][:, task]
    name = schema.tasks[negative.task].item[0]
    items = block.ids[name][lives] if name in block.ids else _given(block.ragged[name], lives)
    key = zlib.crc32(negative.task.encode()) << 32 | negative.number
    bits = hashed(block.flat["index"][lives], seed, epoch, key)
    ids = uniform(bits, schema.num_items(negative.task) - 1)
    return Ragged(ids + (ids >= items), lives.astype(np.int64))


def hashed(values: np.ndarray, *keys: int) -> np.ndarray:
    """Random-looking uint64 of integers `[n]` and keys, by the finaliser of SplitMix64."""
    state = np.zeros((), dtype=np.uint64)
    for key in keys:
        state = mix(state ^ np.array(key, dtype=np.uint64), salt=0)
    return mix(mix(values.astype(np.uint64), salt=0) ^ state, salt=0)


def uniform(bits: np.ndarray, bound: int) -> np.ndarray:
    """Random uint64 to int64 below `bound`, which is below 2**32."""
    return ((bits >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def _given(ids: Ragged, wanted: np.ndarray) -> np.ndarray:
    """The ids of the wanted samples, each of which has one."""
    return ids.values[wanted[ids.lengths > 0]]
