# SPDX-License-Identifier: Apache-2.0
"""Column transforms, vectorised over whole Arrow arrays: raw values to ids or to dense inputs.

Each transform is its own configuration. It is called with an Arrow array and returns one of the
same length. Ids are made of arrays without nulls and NaN (the feature's policy has dealt with
them); the other transforms turn nulls into NaN.
"""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pandas.core.util.hashing import hash_array
from pydantic import Field, model_validator

from deltarec.config import Config

Kind = Literal["string", "integer", "fraction"]
"""What values are, as far as transforms care; booleans are integers."""


class Transform(Config):
    """A function of one column, value by value."""

    takes: ClassVar[tuple[Kind, ...]] = ("integer", "fraction")
    produces: ClassVar[Kind]

    @abstractmethod
    def __call__(self, values: pa.Array) -> pa.Array: ...

    def check(self, kind: Kind) -> None:
        """Find what depends on the column's values being of this kind.

        Raises:
            ValueError: the transform's options do not fit such values.
        """


class Hash(Transform):
    """Ids in [0, buckets) from integers or strings, by a 64-bit hash."""

    name: Literal["hash"]
    buckets: int = Field(gt=0)
    """How many ids there are: the rows of the table."""
    salt: int = 0
    """Another salt gives an independent hash."""

    takes = ("string", "integer")
    produces = "integer"

    def __call__(self, values: pa.Array) -> pa.Array:
        if _is_string(values.type):
            values = values.dictionary_encode()
            words = values.dictionary.to_numpy(zero_copy_only=False).astype(object)
            hashed = hash_array(words, categorize=False)[values.indices.to_numpy()]
        else:
            hashed = values.cast(pa.int64(), safe=False).to_numpy().view(np.uint64)
        return pa.array((mix(hashed, self.salt) % np.uint64(self.buckets)).view(np.int64))


class Vocabulary(Transform):
    """The position of a value in a list, from 1; 0 for a value that is not in it."""

    name: Literal["vocabulary"]
    values: list[str] | list[int] | None = None
    """The list itself."""
    file: str | None = None
    """Or a text file with one value a line."""

    takes = ("string", "integer", "fraction")
    produces = "integer"

    @model_validator(mode="after")
    def _one_source(self) -> "Vocabulary":
        if (self.values is None) == (self.file is None):
            raise ValueError("a vocabulary needs either 'values' or 'file'")
        return self

    @cached_property
    def known(self) -> pa.Array:
        """The list.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.file is None:
            return pa.array(self.values)
        try:
            return pa.array(Path(self.file).read_text("utf-8").splitlines(), pa.string())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the vocabulary cannot be read: {error}") from error

    def check(self, kind: Kind) -> None:
        as_kind(self.known, kind)

    def __call__(self, values: pa.Array) -> pa.Array:
        return pa.array(positions(values, self.known) + 1)


class Bucketise(Transform):
    """The number of boundaries at or below the value: ids in [0, len(boundaries)]."""

    name: Literal["bucketise"]
    boundaries: list[float] = Field(min_length=1)

    produces = "integer"

    @model_validator(mode="after")
    def _ascending(self) -> "Bucketise":
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError(f"boundaries must ascend, got {self.boundaries}")
        return self

    def __call__(self, values: pa.Array) -> pa.Array:
        return pa.array(np.searchsorted(self.boundaries, to_float(values), side="right"))


class Log(Transform):
    """sign(x) · log(1 + |x|)."""

    name: Literal["log"]

    produces = "fraction"

    def __call__(self, values: pa.Array) -> pa.Array:
        numbers = to_float(values)
        return pa.array(np.sign(numbers) * np.log1p(np.abs(numbers)))


class Standardise(Transform):
    """(x − mean) / std."""

    name: Literal["standardise"]
    mean: float
    std: float = Field(gt=0)

    produces = "fraction"

    def __call__(self, values: pa.Array) -> pa.Array:
        return pa.array((to_float(values) - self.mean) / self.std)


TRANSFORMS: dict[str, type[Transform]] = {
    "hash": Hash,
    "vocabulary": Vocabulary,
    "bucketise": Bucketise,
    "log": Log,
    "standardise": Standardise,
}


def hash_ids(values: pa.Array) -> np.ndarray:
    """Integers or strings as int64 keys: equal values, equal keys; all nulls have one, too."""
    if _is_string(values.type):
        words = values.to_numpy(zero_copy_only=False).astype(object)
        keys = hash_array(words).view(np.int64)
    else:
        keys = pc.fill_null(values.cast(pa.int64(), safe=False), 0).to_numpy()
    if not values.null_count:
        return keys
    return np.where(values.is_null().to_numpy(zero_copy_only=False), NULL_KEY, keys)


NULL_KEY = np.iinfo(np.int64).min


def kind_of(arrow_type: pa.DataType) -> Kind | None:
    """What the values of a column are; None for those that no feature can be made of."""
    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if _is_string(arrow_type):
        return "string"
    if pa.types.is_integer(arrow_type) or pa.types.is_boolean(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type):
        return "fraction"
    return None


def positions(values: pa.Array, known: pa.Array) -> np.ndarray:
    """The position of each value in a list, int64; -1 for nulls and what is not in it."""
    kind = kind_of(values.type)
    assert kind is not None
    options = pc.SetLookupOptions(as_kind(known, kind))
    found = pc.call_function("index_in", [as_kind(values, kind)], options)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def as_kind(values: pa.Array, kind: Kind) -> pa.Array:
    """Values in the widest type of their kind, so that they compare.

    Raises:
        ValueError: a value is not of that kind.
    """
    wide = {"string": pa.string(), "integer": pa.int64(), "fraction": pa.float64()}[kind]
    try:
        return values.cast(wide, safe=_is_string(values.type))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{error}") from None


def to_float(values: pa.Array) -> np.ndarray:
    """Float64 values, NaN for nulls."""
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _is_string(arrow_type: pa.DataType) -> bool:
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)


def mix(keys: np.ndarray, salt: int) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014), after adding the salt."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
