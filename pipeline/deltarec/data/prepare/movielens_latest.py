# SPDX-License-Identifier: Apache-2.0
"""MovieLens latest-small as a stream: every rating at its time, 1996 to 2018.

Most users rate for one evening and never come back, and movies keep coming: nearly every partition
has ids that no earlier one has.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from deltarec.data.prepare.dataset import require
from deltarec.data.prepare.stream import Events, StreamDataset

ORIGIN = "https://grouplens.org/datasets/movielens/latest/ (ml-latest-small)"


class MovieLensLatest(StreamDataset):
    """MovieLens latest-small, in partitions by time.

    `like` is a rating of 4 or more stars. Ratings are in half stars here; among the whole stars of
    MovieLens-1M this is the usual `rating > 3`. 48 % of the ratings are.
    """

    dataset: Literal["movielens-latest-small"] = "movielens-latest-small"

    def events(self, source: Path) -> Events:
        ratings, movies = _read(source)
        genres = movies["genres"].str.split("|")
        vocabulary = np.unique(genres.explode().to_numpy().astype(str))
        offsets = np.concatenate([[0], np.cumsum(genres.str.len())]).astype(np.int32)
        codes = np.searchsorted(vocabulary, genres.explode().to_numpy().astype(str))
        lists = pa.ListArray.from_arrays(offsets, codes)
        place = pd.Index(movies["movieId"]).get_indexer(pd.Index(ratings["movieId"]))
        if (place < 0).any():
            lost = ratings["movieId"].to_numpy()[place < 0][0]
            raise ValueError(f"{source}: movie {lost} has a rating but is not among the movies")
        stars = ratings["stars"].to_numpy()
        return Events(
            ratings["timestamp"].to_numpy().astype(np.int64),
            {"user": ratings["userId"].to_numpy(), "item": ratings["movieId"].to_numpy()},
            {
                "genres": lists.take(pa.array(place)),
                "rating": stars.astype(np.float32),
                "like": (stars >= 4).astype(np.int8),
            },
        )


def _read(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ratings with `stars`, and movies, from Parquet files or the original ones."""
    if (source / "ratings.parquet").is_file():
        ratings = pd.read_parquet(source / "ratings.parquet")
        movies = pd.read_parquet(require(source / "movies.parquet", ORIGIN))
        return ratings.assign(stars=ratings["rating_x2"] / 2), movies
    ratings, movies = (
        pd.read_csv(require(source / f"{name}.csv", ORIGIN)) for name in ("ratings", "movies")
    )
    return ratings.rename(columns={"rating": "stars"}), movies
