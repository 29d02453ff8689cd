# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from deltarec.config import validate
from deltarec.data.transforms import (
    TRANSFORMS,
    Transform,
    hash_ids,
    kind_of,
    mix,
    positions,
)
from deltarec_kernels.splitmix import mix64


def make(name: str, **options) -> Transform:
    return validate(TRANSFORMS[name], {"name": name, **options}, "test")


def apply(transform: Transform, values: pa.Array) -> list:
    found = transform(values)
    assert isinstance(found, pa.Array) and len(found) == len(values)
    return found.to_pylist()


def test_hash_is_the_same_for_equal_values_of_any_type():
    hash_10 = make("hash", buckets=1000)
    words = ["a", "b", "", "ü", "a"]
    found = apply(hash_10, pa.array(words))
    assert found == apply(hash_10, pa.array(words, pa.large_string()))
    assert found == [apply(hash_10, pa.array([word]))[0] for word in words]
    numbers = [0, 1, 127]
    found = apply(hash_10, pa.array(numbers, pa.int64()))
    for arrow_type in (pa.int8(), pa.uint8(), pa.int32(), pa.uint64()):
        assert apply(hash_10, pa.array(numbers, arrow_type)) == found


def splitmix64(key: int, salt: int) -> int:
    """The published finaliser, in Python's integers."""
    word = 2**64 - 1
    z = (key + 0x9E3779B97F4A7C15 * (salt + 1)) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_hash_never_changes():
    """Ids are in trained tables: the function is part of every checkpoint."""
    keys = [0, 1, -1, 2**63 - 1, -(2**63)]
    for salt in (0, 1, 12345):
        expected = [splitmix64(key % 2**64, salt) % 10**6 for key in keys]
        assert apply(make("hash", buckets=10**6, salt=salt), pa.array(keys)) == expected
    assert apply(make("hash", buckets=10**6), pa.array(["a", "b"])) == [225146, 596463]


def test_hash_spreads_evenly_and_independently_by_salt():
    values = pa.array(range(100_000))
    first = np.array(apply(make("hash", buckets=100), values))
    second = np.array(apply(make("hash", buckets=100, salt=1), values))
    for found in (first, second):
        counts = np.bincount(found, minlength=100)
        assert len(counts) == 100 and counts.min() > 840 and counts.max() < 1160  # ± 5 deviations
    assert 800 < (first == second).sum() < 1200


@pytest.mark.parametrize("arrow_type", [pa.string(), pa.large_string(), pa.int64()])
def test_hash_of_nothing(arrow_type: pa.DataType):
    assert apply(make("hash", buckets=10), pa.array([], arrow_type)) == []


def test_vocabulary_counts_from_one_and_gives_zero_to_strangers():
    words = make("vocabulary", values=["b", "a"])
    assert apply(words, pa.array(["a", "b", "c", "", "A"])) == [2, 1, 0, 0, 0]
    assert apply(words, pa.array(["a"], pa.large_string())) == [2]
    assert apply(words, pa.array([], pa.string())) == []


@pytest.mark.parametrize(
    "values",
    [
        pa.array([7, 300, 1], pa.int64()),
        pa.array([7, 300, 1], pa.uint16()),
        pa.array([7.0, 300.0, 1.5]),
        pa.array(["7", "300", "1"]),
    ],
)
def test_vocabulary_of_integers_fits_every_type(values: pa.Array):
    assert apply(make("vocabulary", values=[300, 7]), values) == [2, 1, 0]


def test_vocabulary_may_know_more_than_the_column_can_hold():
    assert apply(make("vocabulary", values=[300, 7]), pa.array([7, 8], pa.int8())) == [2, 0]


def test_vocabulary_from_a_file(tmp_path: Path):
    file = tmp_path / "cities.txt"
    file.write_text("Zürich\nGenève\n", encoding="utf-8")
    cities = make("vocabulary", file=str(file))
    assert apply(cities, pa.array(["Genève", "Zürich", "Bern", ""])) == [2, 1, 0, 0]
    file.write_text("7\n300\n")
    assert apply(make("vocabulary", file=str(file)), pa.array([300])) == [2]


def test_vocabulary_that_does_not_fit(tmp_path: Path):
    with pytest.raises(ValueError, match="Failed to parse string: 'a' as a scalar of type int64"):
        make("vocabulary", values=["1", "a"]).check("integer")
    with pytest.raises(ValueError, match=r"the vocabulary cannot be read: .*nope.txt"):
        make("vocabulary", file=str(tmp_path / "nope.txt")).check("string")


@pytest.mark.parametrize("options", [{}, {"values": ["a"], "file": "b"}])
def test_vocabulary_has_one_source(options: dict):
    with pytest.raises(ValueError, match="a vocabulary needs either 'values' or 'file'"):
        make("vocabulary", **options)


@pytest.mark.parametrize(
    "arrow_type", [pa.float64(), pa.float32(), pa.float16(), pa.int8(), pa.int64()]
)
def test_bucketise_puts_a_boundary_in_the_upper_bucket(arrow_type: pa.DataType):
    values = np.array([-5, 0, 1, 2, 3, 9]).astype(arrow_type.to_pandas_dtype())
    found = apply(make("bucketise", boundaries=[0.0, 1.5, 3.0]), pa.array(values, arrow_type))
    assert found == [0, 1, 1, 2, 3, 3]


def test_bucketise_has_a_place_for_infinity():
    found = apply(make("bucketise", boundaries=[0.0]), pa.array([np.inf, -np.inf]))
    assert found == [1, 0]


@pytest.mark.parametrize("boundaries", [[2.0, 1.0], [1.0, 1.0]])
def test_bucketise_needs_ascending_boundaries(boundaries: list[float]):
    with pytest.raises(ValueError, match="boundaries must ascend"):
        make("bucketise", boundaries=boundaries)


def test_log_and_standardise_turn_nulls_into_nan():
    values = pa.array([0, 3, -3, None])
    np.testing.assert_allclose(
        apply(make("log"), values), [0, np.log(4), -np.log(4), np.nan], equal_nan=True
    )
    np.testing.assert_allclose(
        apply(make("standardise", mean=1.0, std=2.0), values), [-0.5, 1, -2, np.nan], equal_nan=True
    )


def test_numbers_beyond_what_floats_count_exactly():
    big = pa.array([2**63 - 1, 2**53 + 1])
    np.testing.assert_allclose(apply(make("log"), big), np.log([2.0**63, 2.0**53]))


def test_hash_ids_gives_equal_keys_to_equal_values_only():
    assert hash_ids(pa.array([5, -1, 5], pa.int32())).tolist() == [5, -1, 5]
    words = hash_ids(pa.array(["a", "b", "a"]))
    assert words[0] == words[2] != words[1]
    assert words.tolist() == hash_ids(pa.array(["a", "b", "a"], pa.large_string())).tolist()


@pytest.mark.parametrize("values", [[0, None, 1, None], ["", None, "0", None]])
def test_hash_ids_gives_nulls_a_key_of_their_own(values: list):
    keys = hash_ids(pa.array(values))
    assert keys[1] == keys[3] and len(set(keys.tolist())) == 3


@pytest.mark.parametrize(
    ("arrow_type", "kind"),
    [
        (pa.string(), "string"),
        (pa.large_string(), "string"),
        (pa.dictionary(pa.int8(), pa.string()), "string"),
        (pa.uint64(), "integer"),
        (pa.bool_(), "integer"),
        (pa.float16(), "fraction"),
        (pa.decimal128(10, 2), "fraction"),
        (pa.binary(), None),
        (pa.date32(), None),
        (pa.null(), None),
        (pa.list_(pa.int64()), None),
    ],
)
def test_kinds(arrow_type: pa.DataType, kind: str | None):
    assert kind_of(arrow_type) == kind


def test_positions_of_nulls_are_not_found():
    assert positions(pa.array(["a", None, "b"]), pa.array(["b", "a"])).tolist() == [1, -1, 0]
    assert positions(pa.array([1, None]), pa.array(["1", "0"])).tolist() == [0, -1]


def test_the_hash_of_arrays_is_that_of_tensors():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63, 1000, dtype=np.int64)
    found = mix(keys.view(np.uint64), salt=0).view(np.int64)
    assert torch.equal(torch.from_numpy(found), mix64(torch.from_numpy(keys)))
