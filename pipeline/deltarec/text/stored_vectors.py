# SPDX-License-Identifier: Apache-2.0
"""Vectors in parts on the disk, each row with the hash of the text that it was made of.

So a later job knows by content what it need not make again. It adds parts for what is new; then
parts with rows that are gone, or whose text is another one now, are written again without them.
Between the two an id may be there twice, which a job that reads the folder refuses by name.
"""

import hashlib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deltarec.text.made_tables import lists_by_key, made_with, write_table

TEXT = "text_hash"
"""Column of a text's hash, 16 bytes."""
TOKENS = "tokens"
"""Column of a text's number of tokens, none cut."""

Vector = tuple[np.ndarray, int]
"""A text's vector `[dim]`, and its number of tokens."""


class StoredVectors:
    """A folder of parts, compared with the texts of all rows as they should be.

    Args:
        folder: of the parts, made if there is none.
        key: column of the rows' ids.
        texts: the hash of each row's text, by id.

    Attributes:
        missing: ids without a vector of their text, in the order of `texts`.
    """

    def __init__(self, folder: Path, key: str, texts: Mapping[int, bytes]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key = key
        self._stale: dict[Path, np.ndarray] = {}
        """Of a part with rows to remove, which rows stay, bool `[rows]`."""
        there: set[int] = set()
        for path in self.parts:
            rows = pq.read_table(path, columns=[key, TEXT]).to_pydict()
            stays = np.zeros(len(rows[key]), bool)
            for place, (id, text) in enumerate(zip(rows[key], rows[TEXT], strict=True)):
                stays[place] = texts.get(id) == text and id not in there
                if stays[place]:
                    there.add(id)
            if not stays.all():
                self._stale[path] = stays
        self.missing = [id for id in texts if id not in there]

    @property
    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def of_texts(self, texts: Set[bytes]) -> dict[bytes, Vector]:
        """The vectors that there are of some texts, whichever rows have them."""
        found: dict[bytes, Vector] = {}
        for path in self.parts if texts else []:
            rows = pq.read_table(path)
            for place, text in enumerate(rows[TEXT].to_pylist()):
                if text in texts and text not in found:
                    vector = rows["vector"][place].values.to_numpy(zero_copy_only=False)
                    found[text] = vector, rows[TOKENS][place].as_py()
        return found

    def add(
        self,
        texts: Mapping[int, bytes],
        vectors: Mapping[bytes, Vector],
        dtype: Literal["fp16", "fp32"],
        made_with: dict[str, Any],
    ) -> None:
        """Write a part of some rows, by the hashes of their texts."""
        found = [vectors[text] for text in texts.values()]
        values = np.stack([vector for vector, _ in found])
        table = lists_by_key(self.key, list(texts), "vector", values, dtype)
        table = table.append_column(TEXT, pa.array(texts.values(), pa.binary(16)))
        table = table.append_column(TOKENS, pa.array([tokens for _, tokens in found], pa.int32()))
        numbers = {int(path.stem.removeprefix("part-")) for path in self.parts}
        number = next(n for n in range(len(numbers) + 1) if n not in numbers)
        write_table(table, self.folder / f"part-{number:05}.parquet", made_with)

    def remove_stale(self) -> int:
        """Write parts again without the rows that are gone or have another text; how many."""
        for path, stays in self._stale.items():
            if stays.any():
                rows = pq.read_table(path)
                write_table(rows.filter(pa.array(stays)), path, made_with(rows.schema))
            else:
                path.unlink()
        return sum(int((~stays).sum()) for stays in self._stale.values())

    def longer_than(self, tokens: int) -> int:
        """How many rows' texts have more tokens."""
        return int((pq.read_table(self.folder, columns=[TOKENS])[TOKENS].to_numpy() > tokens).sum())


def hash_of(text: str) -> bytes:
    """16 bytes that tell one text from another."""
    return hashlib.sha256(text.encode()).digest()[:16]


def chunks(ids: list[int], size: int) -> Iterable[list[int]]:
    """So many at a time."""
    return (ids[start : start + size] for start in range(0, len(ids), size))
