# SPDX-License-Identifier: Apache-2.0
"""Column transforms, vectorised over whole Arrow arrays: raw values to ids or to dense inputs.

Each transform is its own configuration. It is called with an Arrow array and returns one of the same
length. Those that make ids never see nulls (the feature's policy has dealt with them); the others
turn them into NaN.
"""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from deltarec.config import Config


class Transform(Config):
    """A function of one column, value by value."""

    produces: ClassVar[Literal["id", "number"]]
    takes_strings: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, values: pa.Array) -> pa.Array: ...


class Hash(Transform):
    """Ids in [0, buckets) from integers or strings, by a 64-bit hash."""

    name: Literal["hash"]
    buckets: int = Field(gt=0)
    """How many ids there are: the rows of the table."""
    salt: int = 0
    """Another salt gives an independent hash."""

    produces = "id"
    takes_strings = True

    def __call__(self, values: pa.Array) -> pa.Array:
        if _is_string(values.type):
            values = values.dictionary_encode()
            words = values.dictionary.to_numpy(zero_copy_only=False).astype(object)
            hashed = pd.util.hash_array(words, categorize=False)[values.indices.to_numpy()]
        else:
            hashed = values.cast(pa.int64(), safe=False).to_numpy().view(np.uint64)
        return pa.array((_mix(hashed, self.salt) % np.uint64(self.buckets)).view(np.int64))


class Vocabulary(Transform):
    """The position of a value in a list, from 1; 0 for a value that is not in it."""

    name: Literal["vocabulary"]
    values: list[str] | list[int] | None = None
    """The list itself."""
    file: str | None = None
    """Or a text file with one value a line."""

    produces = "id"
    takes_strings = True

    @model_validator(mode="after")
    def _one_source(self) -> "Vocabulary":
        if (self.values is None) == (self.file is None):
            raise ValueError("a vocabulary needs either 'values' or 'file'")
        return self

    def __call__(self, values: pa.Array) -> pa.Array:
        known = self.values
        if known is None:
            known = Path(str(self.file)).read_text().splitlines()
        value_set = pa.array(known).cast(values.type)
        return pc.add(pc.fill_null(pc.index_in(values, value_set), -1), 1)


class Bucketise(Transform):
    """The number of boundaries at or below the value: ids in [0, len(boundaries)]."""

    name: Literal["bucketise"]
    boundaries: list[float] = Field(min_length=1)

    produces = "id"

    @model_validator(mode="after")
    def _ascending(self) -> "Bucketise":
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError(f"boundaries must ascend, got {self.boundaries}")
        return self

    def __call__(self, values: pa.Array) -> pa.Array:
        return pa.array(np.searchsorted(self.boundaries, _numbers(values), side="right"))


class Log(Transform):
    """sign(x) · log(1 + |x|)."""

    name: Literal["log"]

    produces = "number"

    def __call__(self, values: pa.Array) -> pa.Array:
        numbers = _numbers(values)
        return pa.array(np.sign(numbers) * np.log1p(np.abs(numbers)))


class Standardise(Transform):
    """(x − mean) / std."""

    name: Literal["standardise"]
    mean: float
    std: float = Field(gt=0)

    produces = "number"

    def __call__(self, values: pa.Array) -> pa.Array:
        return pa.array((_numbers(values) - self.mean) / self.std)


TRANSFORMS: dict[str, type[Transform]] = {
    "hash": Hash,
    "vocabulary": Vocabulary,
    "bucketise": Bucketise,
    "log": Log,
    "standardise": Standardise,
}


def hash_ids(values: pa.Array) -> np.ndarray:
    """Any integers or strings as int64 keys: equal values, equal keys."""
    if _is_string(values.type):
        return pd.util.hash_array(values.to_numpy(zero_copy_only=False).astype(object)).view(
            np.int64
        )
    return values.cast(pa.int64(), safe=False).to_numpy()


def _is_string(arrow_type: pa.DataType) -> bool:
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)


def _numbers(values: pa.Array) -> np.ndarray:
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _mix(keys: np.ndarray, salt: int) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014), after adding the salt."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(salt + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
