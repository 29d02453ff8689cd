# SPDX-License-Identifier: Apache-2.0
"""Made-up data of any size whose truth is known: the best reachable AUC is computed, not guessed.

Every id has an effect, a vector of 4 numbers with variance 1. It is a hash of (seed, table, id) and
stored nowhere, so a table of a billion rows costs nothing. A sequence's effect is the mean of its
items'. The effects of all ids and sequences (the fields), the products of neighbouring fields'
effects, and the dense features make one vector x of a row, and for a row of scenario s

    logit of task t = signal * (w[s, t] @ x) / deviation[s, t] + intercept[s, t].

The weights are planted. Task t has a unit vector w[t], and the cosine of two tasks is
`task_correlation` (where it is negative: of an even and an odd task, and its opposite of two even
or two odd ones). Scenario s has vectors v[s, t] made alike and orthogonal to all w[t]; its weights
are sqrt(1 - scenario_shift) w[t] + sqrt(scenario_shift) v[s, t], so the tasks' cosine is the same
inside every scenario, and that of one task between two scenarios is about 1 - scenario_shift. The
odds of a positive go from half of the base rate's in the first scenario to double in the last.

With `cascade` the tasks are steps of a funnel: what is drawn for task t is whether the step *would*
be taken, the column `potential_t`, and `task_t` is 1 only where all steps up to it would. Where the
tasks' cosine is high, rows that reach a step are those likely to take it: selection bias, by what
the features show and nothing else. `potential_t` is for judging models, not for training them.

Rows come in blocks. A block is drawn from (seed, number of the block) alone and always computed
whole: rows do not depend on how many are wanted at once, and memory stays that of a few blocks.
Logits are summed by `einsum`: the last bits of a BLAS product depend on the number of threads.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from deltarec.data.prepare.dataset import Dataset, write_split

BLOCK_ROWS = 8_192
EFFECT_DIM = 4
# The truth is judged on so many rows of the test split at most: they are held in memory.
JUDGED_ROWS = 4_194_304

Floats = NDArray[np.float32] | NDArray[np.float64]
Rate = Annotated[float, Field(gt=0, lt=1)]


class Synth(Dataset):
    """Synthetic rows with planted effects of ids, tasks and scenarios; needs no raw files."""

    dataset: Literal["synth"] = "synth"
    seed: int = Field(default=0, ge=0)
    """Seed of the planted truth and of all rows."""
    rows: int = Field(default=1_000_000, ge=10)
    """Number of rows of the three splits together (80/10/10)."""
    num_ids: int = Field(default=26, ge=1)
    """Number of id features; id_0 is the user."""
    table_sizes: list[int] = Field(default=[100_000], min_length=1)
    """Distinct ids of each id feature, or of the first few: then these are taken in turn."""
    zipf_exponent: float = Field(default=1.05, ge=0)
    """An id's frequency falls with its rank to this power; 0: all ids are equally frequent."""
    num_dense: int = Field(default=13, ge=0)
    """Number of dense features, normally distributed."""
    num_sequences: int = Field(default=0, ge=0)
    """Number of sequences; sequence_0 has ids of id_1's table, sequence_1 of id_2's, and so on."""
    max_length: int = Field(default=50, ge=1)
    """Longest sequence; lengths are uniform from 0."""
    num_tasks: int = Field(default=2, ge=1)
    """Number of tasks."""
    task_correlation: float = Field(default=0.5, ge=-1, le=1)
    """Cosine of the weight vectors of neighbouring tasks; negative: they conflict."""
    num_scenarios: int = Field(default=1, ge=1)
    """Number of scenarios, equally frequent."""
    scenario_shift: float = Field(default=0.3, ge=0, le=1)
    """Share of a scenario's own weights; 0: all scenarios alike, 1: nothing in common."""
    cascade: bool = False
    """Whether a task can be positive only where the task before it is."""
    base_rate: Rate | list[Rate] = 0.2
    """Share of positives of every task, or of each, in a scenario in the middle; with `cascade`, of
    those that would be positive."""
    signal: float = Field(default=1.5, ge=0)
    """Standard deviation of the logit; 0: labels are noise."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sizes = self.table_sizes
        if len(sizes) > self.num_ids or min(sizes) < 2 or max(sizes) >= 2**31:
            raise ValueError(
                f"table_sizes {sizes}: expected 1 to num_ids = {self.num_ids} numbers, "
                "each from 2 to 2,147,483,647"
            )
        if self.num_inputs < 2 * (self.num_tasks + 1):
            raise ValueError(
                f"num_tasks {self.num_tasks}: too many for {self.num_inputs} inputs of the logit; "
                "have more id or dense features"
            )
        if isinstance(self.base_rate, list) and len(self.base_rate) != self.num_tasks:
            raise ValueError(
                f"base_rate {self.base_rate}: expected num_tasks = {self.num_tasks} numbers"
            )
        return self

    @property
    def sizes(self) -> list[int]:
        """Table size of each id feature."""
        return [self.table_sizes[i % len(self.table_sizes)] for i in range(self.num_ids)]

    @property
    def tables(self) -> list[int]:
        """Table of each field, ids before sequences: the number of the id feature that owns it."""
        sequences = [(1 + i) % self.num_ids for i in range(self.num_sequences)]
        return [*range(self.num_ids), *sequences]

    @property
    def num_inputs(self) -> int:
        """Length of the vector x: effects, products of neighbours, dense features."""
        num_fields = self.num_ids + self.num_sequences
        return (EFFECT_DIM + 1) * num_fields - 1 + self.num_dense

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """First and last row, exclusive, of each split."""
        cuts = [0, self.rows * 8 // 10, self.rows * 9 // 10, self.rows]
        return {name: (cuts[i], cuts[i + 1]) for i, name in enumerate(("train", "valid", "test"))}

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        world = World(self)
        for split, (begin, end) in self.splits.items():
            tables = (table for table, _ in world.rows(begin, end))
            write_split(target, split, end - begin, tables)
        best = self._best(world)
        for task, found in best.items():
            values = ", ".join(f"{name} {value}" for name, value in found["all"].items())
            print(f"{task}: best reachable on test: {values}", file=sys.stderr, flush=True)
        table_sizes = {f"id_{i}": size for i, size in enumerate(self.sizes)}
        for i, table in enumerate(self.tables[self.num_ids :]):
            table_sizes[f"sequence_{i}"] = self.sizes[table]
        return {
            "table_sizes": {**table_sizes, "scenario": self.num_scenarios},
            "notes": [
                f"sequence_{i} shares the table of id_{table}"
                for i, table in enumerate(self.tables[self.num_ids :])
            ],
            "best": best,
        }

    def _best(self, world: "World") -> dict[str, Any]:
        """AUC and logloss of the true probability on the test split, by task and scenario.

        With `cascade`, of a task on the rows that reach it, and of its potential on all.
        """
        begin, end = self.splits["test"]
        blocks = list(world.rows(begin, min(end, begin + JUDGED_ROWS), features=False))
        table = pa.concat_tables([table for table, _ in blocks])
        probabilities = np.concatenate([probability for _, probability in blocks], axis=1)
        scenario = table["scenario"].to_numpy()
        best: dict[str, Any] = {}

        def add(name: str, task: int, rows: NDArray[np.bool_]) -> None:
            label, probability = table[name].to_numpy(), probabilities[task]
            inside = {str(s): rows & (scenario == s) for s in range(self.num_scenarios)}
            best[name] = {
                "all": judge(label[rows], probability[rows]),
                "scenario": {s: judge(label[r], probability[r]) for s, r in inside.items()},
            }

        everything = np.ones(len(scenario), dtype=bool)
        for task in range(self.num_tasks):
            given = self.cascade and task > 0
            reached = table[f"task_{task - 1}"].to_numpy() == 1 if given else everything
            add(f"task_{task}", task, reached)
            if given:
                add(f"potential_{task}", task, everything)
        return best


class World:
    """The planted truth and the rows drawn from it."""

    def __init__(self, options: Synth) -> None:
        self.options = options
        self.weights = self._plant()
        self.intercepts = np.zeros(self.weights.shape[:2])
        self._calibrate()

    def rows(
        self, begin: int, end: int, features: bool = True
    ) -> Iterator[tuple[pa.Table, Floats]]:
        """Tables of the rows from `begin` to `end`, with their true probabilities `[T, rows]`.

        Without `features`, the tables have labels and scenario only.
        """
        for block in range(begin // BLOCK_ROWS, -(-end // BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            table, probability = self._block(block)
            wanted = slice(max(begin - first, 0), min(end - first, BLOCK_ROWS))
            if not features:
                labels = [n for n in table.column_names if n.startswith(("task_", "potential_"))]
                table = table.select([*labels, "scenario"])
            yield table[wanted], probability[:, wanted]

    def _plant(self) -> Floats:
        """Weights `[S, T, num_inputs]`, unit vectors."""
        options = self.options
        rng = np.random.default_rng([options.seed, 0])
        shape = (options.num_inputs, options.num_tasks + 1)
        shared = np.linalg.qr(rng.standard_normal(shape))[0]
        tasks = self._correlated(shared)
        shift = options.scenario_shift
        weights = []
        for _ in range(options.num_scenarios):
            own = np.linalg.qr(np.hstack([shared, rng.standard_normal(shape)]))[0]
            own_tasks = self._correlated(own[:, shape[1] :])
            weights.append((1 - shift) ** 0.5 * tasks + shift**0.5 * own_tasks)
        return np.stack(weights)

    def _correlated(self, basis: Floats) -> Floats:
        """Unit vectors `[T, num_inputs]` with the tasks' cosines, of a basis `[., T + 1]`."""
        correlation = self.options.task_correlation
        sign = np.ones(self.options.num_tasks)
        sign[1::2] = -1 if correlation < 0 else 1
        shared = abs(correlation) ** 0.5 * sign[:, None] * basis[:, 0]
        return shared + (1 - abs(correlation)) ** 0.5 * basis[:, 1:].T

    def _calibrate(self) -> None:
        """Scale weights and set intercepts so that logits have the wanted deviation and mean rate.

        Hot ids make both depend on the ids' luck, so they are measured on a block of its own.
        """
        options = self.options
        inputs = self._inputs(self._draw(np.random.default_rng([options.seed, 1])))
        logits = np.einsum("std,dr->str", self.weights, inputs)
        scale = options.signal / logits.std(axis=-1, keepdims=True)
        logits, self.weights = logits * scale, (self.weights * scale).astype(np.float32)
        several = options.num_scenarios > 1
        spread = np.linspace(-1, 1, options.num_scenarios) if several else np.zeros(1)
        rates = np.broadcast_to(options.base_rate, options.num_tasks)
        odds = rates / (1 - rates) * 2.0 ** spread[:, None]
        rate = odds / (1 + odds)
        low, high = np.full((2, *self.intercepts.shape), [[[-50.0]], [[50.0]]])
        for _ in range(40):
            middle = (low + high) / 2
            above = _sigmoid(logits + middle[..., None]).mean(axis=-1) > rate
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        self.intercepts = (low + high) / 2

    def _block(self, block: int) -> tuple[pa.Table, Floats]:
        options = self.options
        rng = np.random.default_rng([options.seed, 2, block])
        draw = self._draw(rng)
        inputs = self._inputs(draw)
        probability = np.empty((options.num_tasks, BLOCK_ROWS))
        for scenario in range(options.num_scenarios):
            rows = np.flatnonzero(draw.scenario == scenario)
            logits = np.einsum("td,dr->tr", self.weights[scenario], inputs.take(rows, axis=1))
            probability[:, rows] = _sigmoid(logits + self.intercepts[scenario, :, None])
        labels = (rng.random(probability.shape) < probability).astype(np.int8)
        columns: dict[str, Any] = {f"id_{i}": ids for i, ids in enumerate(draw.ids)}
        columns |= {f"dense_{i}": values for i, values in enumerate(draw.dense)}
        columns |= {
            f"sequence_{i}": pa.ListArray.from_arrays(np.append([0], ends).astype(np.int32), items)
            for i, (ends, items) in enumerate(draw.sequences)
        }
        columns["scenario"] = draw.scenario
        if options.cascade:
            columns |= {f"potential_{i}": label for i, label in enumerate(labels) if i}
            labels = np.minimum.accumulate(labels)
        columns |= {f"task_{i}": label for i, label in enumerate(labels)}
        return pa.table(columns), probability

    def _draw(self, rng: np.random.Generator) -> "Draw":
        options = self.options
        ids = [zipf(rng, size, options.zipf_exponent, BLOCK_ROWS) for size in options.sizes]
        sequences = []
        for table in options.tables[options.num_ids :]:
            ends = np.cumsum(rng.integers(0, options.max_length, BLOCK_ROWS, endpoint=True))
            items = zipf(rng, options.sizes[table], options.zipf_exponent, ends[-1])
            sequences.append((ends, items))
        dense = rng.standard_normal((options.num_dense, BLOCK_ROWS), dtype=np.float32)
        return Draw(ids, sequences, dense, rng.integers(0, options.num_scenarios, BLOCK_ROWS))

    def _inputs(self, draw: "Draw") -> Floats:
        """The vectors x, float32 `[num_inputs, rows]`."""
        options = self.options
        inputs = np.empty((options.num_inputs, BLOCK_ROWS), np.float32)
        num_fields = len(options.tables)
        fields = inputs[: EFFECT_DIM * num_fields].reshape(num_fields, EFFECT_DIM, BLOCK_ROWS)
        for field, ids in enumerate(draw.ids):
            fields[field] = effects(options.seed, options.tables[field], ids)
        # Where there is a mean, it is scaled to the ids' variance of 1.
        scale = np.mean(1 / np.arange(1, options.max_length + 1)) ** -0.5
        for field, (ends, items) in enumerate(draw.sequences, start=options.num_ids):
            fields[field] = _mean(effects(options.seed, options.tables[field], items), ends)
            fields[field] *= scale
        products = inputs[EFFECT_DIM * num_fields :][: num_fields - 1]
        np.sum(fields[:-1] * fields[1:], axis=1, out=products)
        products *= EFFECT_DIM**-0.5
        inputs[options.num_inputs - options.num_dense :] = draw.dense
        return inputs


class Draw(NamedTuple):
    """What is random in the features of a block."""

    ids: list[NDArray[np.int64]]
    """Of each id feature, `[rows]`."""
    sequences: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Of each sequence, each row's end `[rows]` and all rows' items `[items]`."""
    dense: NDArray[np.float32]
    """`[num_dense, rows]`."""
    scenario: NDArray[np.int64]
    """`[rows]`."""


def effects(seed: int, table: int, ids: NDArray[np.int64]) -> Floats:
    """The planted effects of ids of one table, float32 `[EFFECT_DIM, ids]`, mean 0 and variance 1.

    They are the four 16-bit words of a 64-bit hash (SplitMix64).
    """
    key = np.random.SeedSequence([seed, 3, table]).generate_state(1, np.uint64)[0]
    bits = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    for shift, factor in [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)]:
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    words = bits.view(np.uint16).reshape(-1, EFFECT_DIM).T.astype(np.float32)
    return (words - 32_767.5) * np.float32(12**0.5 / 65_536)


def judge(label: NDArray[np.int8], probability: Floats) -> dict[str, float | int | None]:
    """AUC and logloss; null where they are undefined.

    Args:
        label: 0 or 1, `[rows]`.
        probability: float64 `[rows]`.
    """
    if not len(label):
        return {"auc": None, "logloss": None, "n": 0}
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    logloss = -np.where(label == 1, np.log(clipped), np.log1p(-clipped)).mean()
    inverse = np.unique(probability, return_inverse=True)[1]
    positives = np.bincount(inverse, weights=label)
    negatives = np.bincount(inverse) - positives
    pairs = positives.sum() * negatives.sum()
    # A positive is above all negatives of lower values, and above half of those of its own.
    won = positives @ (np.cumsum(negatives) - negatives / 2)
    auc = float(won / pairs) if pairs else None
    return {"auc": auc, "logloss": float(logloss), "n": len(label)}


def zipf(rng: np.random.Generator, size: int, exponent: float, count: int) -> NDArray[np.int64]:
    """Ids below `size`, with frequencies falling by rank as a power law cut into whole numbers.

    The ranks are spread over the ids, as in real tables: hot ids lie anywhere.
    """
    uniform = rng.random(count)
    power = 1 - exponent
    if power == 0:
        log_position = uniform * np.log(size + 1)
    else:
        log_position = np.log(1 + uniform * ((size + 1.0) ** power - 1)) / power
    rank = np.minimum(np.exp(log_position).astype(np.int64) - 1, size - 1)
    return rank * _stride(size) % size


def _stride(size: int) -> int:
    """A step that visits all ids below `size`, far from any short cycle (the golden ratio)."""
    stride = max(1, round(0.618034 * size))
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _mean(values: Floats, ends: NDArray[np.int64]) -> Floats:
    """The mean over each row's part of `values` `[EFFECT_DIM, items]`; 0 where it has none."""
    starts = np.append([0], ends[:-1])
    filled = np.flatnonzero(ends > starts)
    means = np.zeros((EFFECT_DIM, len(ends)), np.float32)
    if len(filled):
        sums = np.add.reduceat(values, starts[filled], axis=1)
        means[:, filled] = sums / (ends - starts)[filled]
    return means


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))
