# SPDX-License-Identifier: Apache-2.0
"""MovieLens-1M with an item table for texts, and movies that nobody has rated before the test."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from deltarec.data.prepare.dataset import SPLITS, Dataset, write_split
from deltarec.data.prepare.movie_items import missing_texts, write_items
from deltarec.data.prepare.movielens1m import (
    rating_columns,
    read_raw,
    split_ratings,
    table_sizes,
)


class MovieLens1MText(Dataset):
    """The split of movielens-1m, but all ratings of a random share of movies are in the test."""

    dataset: Literal["movielens-1m-text"] = "movielens-1m-text"
    seed: int = Field(default=2022, ge=0)
    """Seed of the split, and of which movies are cold."""
    cold_items: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rated movies that are cold: no rating of them is in train or valid."""
    catalogue: int = Field(default=20, gt=0)
    """Rows of each movie in `catalogue/`, in random order, of train's columns: the movie, cold or
    not, 0 for movie_trained, and nulls. Beside train they show alignment all movies
    (docs/methods/alignment.md)."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        raw = read_raw(source)
        columns = rating_columns(raw)
        movie = columns["movie_id"].to_numpy()
        rated = np.unique(movie)
        num_cold = round(self.cold_items * len(rated))
        cold = np.random.default_rng([self.seed, 1]).choice(rated, num_cold, replace=False)
        is_cold = np.isin(movie, cold)
        train, valid, test = split_ratings(len(columns), self.seed)
        others = np.concatenate([train, valid])
        splits = [train[~is_cold[train]], valid[~is_cold[valid]]]
        splits.append(np.concatenate([test, others[is_cold[others]]]))
        trained = np.bincount(movie[splits[0]], minlength=movie.max() + 1)
        columns = columns.append_column("movie_trained", pa.array(trained[movie]))
        for split, rows in zip(SPLITS, splits, strict=True):
            write_split(target, split, len(rows), [columns.take(rows)])
        write_items(target, raw.movies)
        self._write_catalogue(target, raw.movies.index.to_numpy(), columns.schema)
        return {
            "table_sizes": table_sizes(columns),
            "notes": [
                "movie_trained counts the movie's ratings in train: 0 for those that are cold",
                "items/ has one row for each movie, with its texts",
                f"catalogue/ has {self.catalogue} rows for each movie, without user and labels",
                *missing_texts(raw.movies),
            ],
            "cold_movies": num_cold,
            "cold_rows": int(is_cold.sum()),
        }

    def _write_catalogue(self, target: Path, movies: np.ndarray, schema: pa.Schema) -> None:
        random = np.random.default_rng([self.seed, 2])
        rows = random.permutation(np.repeat(movies, self.catalogue))
        known = {"movie_id": rows, "movie_trained": np.zeros_like(rows)}
        columns = [
            pa.array(known[name], kind) if name in known else pa.nulls(len(rows), kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        write_split(target, "catalogue", len(rows), [pa.table(columns, schema=schema)])
