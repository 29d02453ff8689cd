# SPDX-License-Identifier: Apache-2.0
"""MovieLens-1M: two tasks (rating above 3; rating 5), three scenarios by age, the user's history.

It is read from the original `.dat` files or from Parquet files of the same names. The ratings of
both are put into one order, by user and then by time, before the split is drawn, so that both give
the same rows. The original has times in seconds, where many of a user's ratings fall together: they
keep the order of the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from deltarec.data.prepare.dataset import SPLITS, Dataset, require, write_split

ORIGIN = "https://grouplens.org/datasets/movielens/1m/ (ratings.dat, users.dat and movies.dat)"
CHUNK_ROWS = 65_536


class MovieLens1M(Dataset):
    """MovieLens-1M, split 80/10/10 at random over ratings."""

    dataset: Literal["movielens-1m"] = "movielens-1m"
    seed: int = Field(default=2022, ge=0)
    """Seed of the split."""
    max_history: int = Field(default=50, ge=1)
    """Most movies that `history` holds: the user's latest before this rating, oldest first."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        raw = read_raw(source)
        columns = rating_columns(raw)
        for split, rows in zip(SPLITS, split_ratings(len(columns), self.seed), strict=True):
            write_split(target, split, len(rows), self._tables(columns, rows))
        domains = np.bincount(columns["domain"].to_numpy(), minlength=3)
        return {
            "table_sizes": table_sizes(columns),
            "notes": ["history holds movie ids (the table of movie_id), genres those of genre"],
            "domain_rows": domains.tolist(),
        }

    def _tables(self, columns: pa.Table, rows: np.ndarray) -> Iterator[pa.Table]:
        """Tables of the given rows, in this order, with each row's history."""
        movies = columns["movie_id"].to_numpy()
        for begin in range(0, len(rows), CHUNK_ROWS):
            table = columns.take(rows[begin : begin + CHUNK_ROWS])
            # The ratings stand by user and time: a row's history is the rows before it.
            length = np.minimum(table["pos"].to_numpy(), self.max_history)
            ends = np.cumsum(length)
            first = rows[begin : begin + CHUNK_ROWS] - length
            values = movies[np.arange(ends[-1]) + np.repeat(first - (ends - length), length)]
            offsets = np.concatenate([[0], ends]).astype(np.int32)
            yield table.append_column("history", pa.ListArray.from_arrays(offsets, values))


class Raw(NamedTuple):
    """The raw data in one form, whatever the files; ratings are by user, then time."""

    ratings: pd.DataFrame
    """user_id, movie_id, rating."""
    users: pd.DataFrame
    """gender, age, occupation, zip; the index is user_id."""
    movies: pd.DataFrame
    """title, genres (`a|b|c`), year, and what else the files say; the index is movie_id."""


def split_ratings(num_ratings: int, seed: int) -> list[np.ndarray]:
    """The ratings of train, validation and test, 80/10/10, each in random order."""
    order = np.random.default_rng(seed).permutation(num_ratings)
    return np.split(order, [int(0.8 * num_ratings), int(0.9 * num_ratings)])


def read_raw(source: Path) -> Raw:
    """All files of the folder.

    Raises:
        ValueError: one is missing or broken.
    """
    if (source / "ratings.parquet").is_file():
        ratings, users, movies = (
            pd.read_parquet(require(source / f"{name}.parquet", ORIGIN))
            for name in ("ratings", "users", "movies")
        )
        ratings = ratings.sort_values(["user_id", "pos"], kind="stable")
    else:
        ratings = _read_dat(source / "ratings.dat", ["user_id", "movie_id", "rating", "time"])
        users = _read_dat(source / "users.dat", ["user_id", "gender", "age", "occupation", "zip"])
        movies = _read_dat(source / "movies.dat", ["movie_id", "title", "genres"])
        movies["year"] = movies["title"].str.extract(r"\((\d{4})\)\s*$", expand=False)
        ratings = ratings.astype("int64").sort_values(["user_id", "time"], kind="stable")
    numbers = ["user_id", "age", "occupation"]
    return Raw(
        ratings.filter(["user_id", "movie_id", "rating"]).astype("int64"),
        users.astype(dict.fromkeys(numbers, "int64")).set_index("user_id"),
        movies.astype({"movie_id": "int64", "year": "int64"}).set_index("movie_id"),
    )


def _read_dat(path: Path, names: list[str]) -> pd.DataFrame:
    """A `::`-separated file, all columns as strings."""
    text = require(path, ORIGIN).read_text(encoding="latin-1")
    fields = text.removesuffix("\n").replace("\n", "::").split("::")
    if len(fields) % len(names):
        raise ValueError(f"{path}: not {len(names)} fields in every line; get the file again")
    return pd.DataFrame({name: fields[i :: len(names)] for i, name in enumerate(names)})


def table_sizes(columns: pa.Table) -> dict[str, int]:
    """The rows that a table for each id column needs."""
    ids = ["user_id", "movie_id", "gender", "age", "occupation", "zip", "genre"]
    return {name: int(columns[name].to_numpy().max()) + 1 for name in ids}


def rating_columns(raw: Raw) -> pa.Table:
    """All columns but `history`, one row a rating, in the order of `raw.ratings`."""
    user, movie = _find(raw.ratings, raw.users), _find(raw.ratings, raw.movies)
    age = raw.users["age"].to_numpy()
    rating = raw.ratings["rating"].to_numpy()
    genres, first_genres = _encode_genres(raw.movies)
    return pa.table(
        {
            "user_id": raw.ratings["user_id"].to_numpy(),
            "movie_id": raw.ratings["movie_id"].to_numpy(),
            "gender": _encode(raw.users["gender"].to_numpy())[user],
            "age": age[user],
            "occupation": raw.users["occupation"].to_numpy()[user],
            "zip": _encode(raw.users["zip"].to_numpy())[user],
            "genre": first_genres[movie],
            "genres": genres.take(movie),
            "year": raw.movies["year"].to_numpy()[movie],
            "domain": np.searchsorted([25, 35], age, side="right")[user],
            "rating": rating.astype(np.float32),
            "like": (rating > 3).astype(np.int8),
            "favourite": (rating == 5).astype(np.int8),
            "pos": raw.ratings.groupby("user_id").cumcount().to_numpy(),
        }
    )


def _find(ratings: pd.DataFrame, entities: pd.DataFrame) -> np.ndarray:
    """Row of each rating's user or movie, whichever `entities` holds."""
    name = str(entities.index.name)
    ids = ratings[name].to_numpy()
    positions = entities.index.get_indexer(pd.Index(ids))
    if (positions < 0).any():
        raise ValueError(
            f"MovieLens-1M: a rating has {name} {ids[positions < 0][0]}, which its other files "
            "lack; get the dataset again, all files of one version"
        )
    return positions


def _encode(values: np.ndarray) -> np.ndarray:
    """Position of each value among the sorted distinct ones, int64."""
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64)


def _encode_genres(movies: pd.DataFrame) -> tuple[pa.ListArray, np.ndarray]:
    """Each movie's genres, and its first one, by position in the sorted vocabulary."""
    genres = movies["genres"].str.split("|")
    codes = _encode(genres.explode().to_numpy())
    offsets = np.concatenate([[0], np.cumsum(genres.str.len())]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, codes), codes[offsets[:-1]]
