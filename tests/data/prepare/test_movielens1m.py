# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare import MovieLens1M
from deltarec.data.prepare.dataset import prepare

GENRES = ["Action", "Children's", "Film-Noir", "Sci-Fi"]


def read(folder: Path) -> list[pa.Table]:
    return [pq.read_table(folder / split) for split in ("train", "valid", "test")]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A small dataset as `.dat` files and as Parquet files; many times are equal."""
    rng = np.random.default_rng(0)
    users = pd.DataFrame(
        {
            "user_id": np.arange(1, 41),
            "gender": rng.choice(["F", "M"], 40),
            "age": rng.choice([1, 18, 25, 35, 45, 50, 56], 40),
            "occupation": rng.integers(0, 21, 40),
            "zip": rng.choice(["55117", "02460", "98107-2117"], 40),
        }
    )
    movie_id = np.arange(1, 61) * 2
    movies = pd.DataFrame(
        {
            "movie_id": movie_id,
            "title": [f"Épisode: {i}\x85 (1980) ({1919 + i})" for i in range(60)],
            "genres": ["|".join(rng.permutation(GENRES)[: 1 + i % 4]) for i in range(60)],
            "year": 1919 + np.arange(60),
        }
    )
    pairs = rng.permutation(40 * 60)[:1500]
    ratings = pd.DataFrame(
        {
            "user_id": pairs // 60 + 1,
            "movie_id": movie_id[pairs % 60],
            "rating": rng.integers(1, 6, 1500),
            "time": rng.integers(978_300_000, 978_300_020, 1500),
        }
    )
    dat, parquet = tmp_path / "dat", tmp_path / "parquet"
    dat.mkdir()
    parquet.mkdir()
    tables = {"users": users, "movies": movies.drop(columns="year"), "ratings": ratings}
    for name, table in tables.items():
        lines = ["::".join(map(str, row)) for row in table.itertuples(index=False)]
        (dat / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    ratings = ratings.sort_values(["user_id", "time"], kind="stable")
    ratings["pos"] = ratings.groupby("user_id").cumcount()
    users.astype({"age": "uint8"}).to_parquet(parquet / "users.parquet")
    movies.astype({"movie_id": "uint16"}).to_parquet(parquet / "movies.parquet")
    ratings.drop(columns="time").astype("uint16").to_parquet(parquet / "ratings.parquet")
    return dat, parquet


def test_both_sources_give_the_same_rows(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for source in pair:
        prepare(MovieLens1M(max_history=7), source, tmp_path / "out" / source.name)
    for dat, parquet in zip(*(read(tmp_path / "out" / s.name) for s in pair), strict=True):
        assert dat.equals(parquet)


def test_columns_are_those_of_the_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    dat, parquet = pair
    prepare(MovieLens1M(), dat, tmp_path / "out")
    users = pd.read_parquet(parquet / "users.parquet").set_index("user_id")
    movies = pd.read_parquet(parquet / "movies.parquet").set_index("movie_id")
    ratings = pd.read_parquet(parquet / "ratings.parquet").set_index(["user_id", "movie_id"])
    rows = pa.concat_tables(read(tmp_path / "out")).to_pylist()
    assert len(rows) == 1500
    for row in rows:
        user, movie = users.loc[row["user_id"]], movies.loc[row["movie_id"]]
        rating = ratings.loc[(row["user_id"], row["movie_id"])]
        assert "FM"[row["gender"]] == user["gender"]
        assert (row["age"], row["occupation"]) == (user["age"], user["occupation"])
        assert sorted(users["zip"].unique())[row["zip"]] == user["zip"]
        assert row["domain"] == [0, 0, 1, 2, 2, 2, 2][[1, 18, 25, 35, 45, 50, 56].index(row["age"])]
        assert "|".join(GENRES[genre] for genre in row["genres"]) == movie["genres"]
        assert row["genre"] == row["genres"][0]
        assert (row["year"], row["rating"]) == (movie["year"], rating["rating"])
        assert (row["like"], row["favourite"]) == (row["rating"] > 3, row["rating"] == 5)
        assert row["pos"] == rating["pos"]


def test_history_is_what_the_user_rated_before(pair: tuple[Path, Path], tmp_path: Path) -> None:
    prepare(MovieLens1M(max_history=7), pair[0], tmp_path / "out")
    ratings = []
    for order, line in enumerate((pair[0] / "ratings.dat").read_text().splitlines()):
        user, movie, _, seconds = map(int, line.split("::"))
        ratings.append((user, seconds, order, movie))
    ratings.sort()
    for row in pa.concat_tables(read(tmp_path / "out")).to_pylist():
        earlier = []
        for user, _, _, movie in ratings:
            if user == row["user_id"] and movie == row["movie_id"]:
                break
            if user == row["user_id"]:
                earlier.append(movie)
        assert row["history"] == earlier[-7:]
        assert row["pos"] == len(earlier)


def test_broken_files_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    dat, parquet = pair
    ratings = dat / "ratings.dat"
    ratings.write_text(ratings.read_text()[:-5] + "::")
    with pytest.raises(ValueError, match=r"ratings.dat: not 4 fields in every line"):
        prepare(MovieLens1M(), dat, tmp_path / "out")
    users = pd.read_parquet(parquet / "users.parquet")
    users[users["user_id"] != 7].to_parquet(parquet / "users.parquet")
    with pytest.raises(ValueError, match="a rating has user_id 7, which its other files lack"):
        prepare(MovieLens1M(), parquet, tmp_path / "out")
    (parquet / "movies.parquet").unlink()
    with pytest.raises(ValueError, match=r"movies.parquet: there is no such file"):
        prepare(MovieLens1M(), parquet, tmp_path / "out")


def test_real_data(ml1m: Path, tmp_path: Path) -> None:
    prepare(MovieLens1M(), ml1m, tmp_path / "out")
    splits = read(tmp_path / "out")
    assert [len(split) for split in splits] == [800_167, 100_021, 100_021]
    table = pa.concat_tables(splits)
    assert np.bincount(table["domain"].to_numpy()).tolist() == [210_747, 395_556, 393_906]
    assert table["like"].to_numpy().sum() == 575_281
    raw = pq.read_table(ml1m / "ratings.parquet")
    order = np.random.default_rng(2022).permutation(1_000_209)
    for name in ("user_id", "movie_id", "pos", "rating"):
        assert np.array_equal(table[name].to_numpy(), raw[name].to_numpy()[order])
    lengths = np.diff(table["history"].combine_chunks().offsets.to_numpy())
    assert np.array_equal(lengths, np.minimum(table["pos"].to_numpy(), 50))
    metadata = pq.read_metadata(tmp_path / "out/train/part-00000.parquet")
    assert metadata.num_row_groups == 96
