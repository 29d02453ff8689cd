# SPDX-License-Identifier: Apache-2.0
"""Items drawn for the samples of pairwise tasks."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deltarec.data.batch import Batch, Position
from deltarec.data.files import find
from deltarec.data.negatives import Negatives, cumulative, hashed, uniform, weighted
from deltarec.data.pairs import count_items
from deltarec.data.reader import Reader, ReaderConfig
from tests.pair_job import ITEMS, ROWS, USERS, pair_job

Drawn = dict[tuple[int, int], dict[str, int]]
"""By epoch and sample, the id of each feature that the sample has."""


def reader(data: Path, draw: int | None, rank: int = 0, num_ranks: int = 1) -> Reader:
    files, schema = find(str(data), ["train"]), pair_job(data).data_schema
    negatives = None
    if draw is not None:
        negatives = Negatives(schema, draw, count_items(reader(data, None), ["along"]))
    return Reader(files, schema, ReaderConfig(), 100, 5, rank, num_ranks, negatives=negatives)


def by_sample(batches: list[Batch]) -> Drawn:
    found: Drawn = {}
    for batch in batches:
        assert batch.pooled is not None
        features = {n: f.to_padded_dense(1, -1) for n, f in batch.pooled.to_dict().items()}
        rows = {name: ids[:, 0].long().tolist() for name, ids in features.items()}
        for row, index in enumerate(batch.index.tolist()):
            found[batch.epoch, index] = {n: ids[row] for n, ids in rows.items() if ids[row] >= 0}
    return {key: values for key, values in found.items() if key[1] >= 0}


def test_each_sample_has_its_own_negatives_on_any_ranks_and_after_a_restart(pair_data: Path):
    whole = by_sample(list(reader(pair_data, 7).read(Position(), epochs=2)))
    assert len(whole) == 2 * ROWS["train"]
    ranks = [
        by_sample(list(reader(pair_data, 7, r, 3).read(Position(), epochs=2))) for r in range(3)
    ]
    assert {k: v for rank in ranks for k, v in rank.items()} == whole
    resumed = by_sample(list(reader(pair_data, 7).read(Position(1, 700), epochs=2)))
    assert len(resumed) == ROWS["train"] - 700
    assert all(whole[key] == values for key, values in resumed.items())


def test_other_epochs_seeds_and_numbers_draw_others(pair_data: Path):
    drawn = by_sample(list(reader(pair_data, 7).read(Position(), epochs=2)))
    other = by_sample(list(reader(pair_data, 8).read(Position(), epochs=1)))
    keys = [key for key, ids in drawn.items() if "listen/negative0" in ids and not key[0]]

    def equal(left: list[int], right: list[int]) -> float:
        return float(np.mean([a == b for a, b in zip(left, right, strict=True)]))

    first = [drawn[key]["listen/negative0"] for key in keys]
    second = [drawn[key]["listen/negative1"] for key in keys]
    assert len(keys) > 400
    assert equal(first, second) < 0.05
    assert equal(first, [drawn[1, row]["listen/negative0"] for _, row in keys]) < 0.05
    assert equal(first, [other[key]["listen/negative0"] for key in keys]) < 0.05


def test_all_items_but_the_samples_own_are_equally_likely(pair_data: Path):
    drawn = by_sample(list(reader(pair_data, 7).read(Position(), epochs=10)))
    for item, negative, rows in (
        ("item", "listen/negative0", ITEMS),
        ("friend", "social/negative0", USERS),
    ):
        pairs = [(ids[item], ids[negative]) for ids in drawn.values() if negative in ids]
        assert all(positive != other for positive, other in pairs)
        counts = np.bincount([other for _, other in pairs], minlength=rows)
        assert len(counts) == rows
        expected = len(pairs) / rows
        assert (abs(counts - expected) < 5 * expected**0.5).all()


def test_a_task_lives_where_both_its_ids_are(pair_data: Path):
    for batch in reader(pair_data, 7).read(Position(), epochs=1):
        features = batch.pooled.to_dict()  # pyright: ignore
        for t, names in enumerate([("user", "item"), ("user", "friend"), ("item", "other")]):
            there = [features[name].lengths().bool() for name in names]
            assert (batch.mask[:, t] == there[0] & there[1]).all()
        assert (batch.mask.sum(1) == (batch.index >= 0)).all()
        assert (features["listen/negative1"].lengths().bool() == batch.mask[:, 0]).all()


def test_nothing_is_drawn_for_evaluations(pair_data: Path):
    batch = next(reader(pair_data, None).read(Position(), epochs=1))
    assert batch.pooled is not None
    assert not batch.pooled["listen/negative0"].lengths().any()
    assert batch.pooled["item"].lengths().any()


def test_uniform_reaches_its_ends():
    drawn = uniform(hashed(np.arange(2000), 1, 2), 3)
    assert set(drawn) == {0, 1, 2}
    ends = uniform(np.array([0, 2**64 - 1], dtype=np.uint64), 2**32 - 1)
    assert ends.tolist() == [0, 2**32 - 2]


def test_places_are_drawn_in_proportion_to_their_steps_without_one():
    counts = np.array([4, 0, 1, 9, 16, 0])
    upto = cumulative(counts, 0.5)
    assert upto[0] == 0 and upto[-1] < 2**32
    np.testing.assert_allclose(
        np.diff(upto) / upto[-1], np.array([2, 0, 1, 3, 4, 0]) / 10, atol=1e-8
    )
    draws = 60_000
    bits = hashed(np.arange(draws), 1)
    for without in range(len(counts)):
        found = np.bincount(weighted(bits, upto, np.full(draws, without)), minlength=len(counts))
        left = np.sqrt(counts) * (np.arange(len(counts)) != without)
        expected = draws * left / left.sum()
        assert (abs(found - expected) <= 5 * expected**0.5).all()


def test_the_ends_of_the_range_are_drawn_and_no_place_without_a_count():
    counts = np.array([0, 3, 0, 5, 1, 0])
    upto = cumulative(counts, 1.0)
    ends = np.array([0, 2**64 - 1], dtype=np.uint64)
    assert weighted(ends, upto, np.array([1, 1])).tolist() == [3, 4]
    assert weighted(ends, upto, np.array([4, 4])).tolist() == [1, 3]
    assert weighted(ends, upto, np.array([5, 5])).tolist() == [1, 4]


def test_the_rarest_of_millions_can_be_drawn():
    counts = np.ones(3_000_000, dtype=np.int64)
    counts[0] = 10**12
    steps = np.diff(cumulative(counts, 1.0))
    assert steps.min() == 1
    assert steps.sum() < 2**32


def test_a_task_draws_by_the_counts_of_its_own_samples(pair_data: Path):
    rows = [r for f in find(str(pair_data), ["train"]) for r in pq.read_table(f.path).to_pylist()]
    others = [row["other"] for row in rows if None not in (row["item"], row["other"])]
    counts = count_items(reader(pair_data, None), ["along"])["along"]
    assert counts.tolist() == np.bincount(others, minlength=ITEMS).tolist()
    drawn = by_sample(list(reader(pair_data, 7).read(Position(), epochs=40))).values()
    pairs = [(ids["other"], ids["along/negative0"]) for ids in drawn if "along/negative0" in ids]
    weights = counts**0.75
    chance = sum(
        weights * (np.arange(ITEMS) != own) / (weights.sum() - weights[own]) for own, _ in pairs
    )
    found = np.bincount([negative for _, negative in pairs], minlength=ITEMS)
    assert len(set(np.round(chance))) > 5
    assert (abs(found - chance) <= 5 * np.sqrt(chance)).all()


def test_a_task_of_one_item_is_refused_and_one_without_samples_is_not(pair_data: Path):
    schema = pair_job(pair_data).data_schema
    counts = np.zeros(ITEMS, dtype=np.int64)
    Negatives(schema, 7, {"along": counts})
    counts[3] = 5
    with pytest.raises(ValueError, match=r"tasks\.along\.negative_power: .* the same item"):
        Negatives(schema, 7, {"along": counts})
