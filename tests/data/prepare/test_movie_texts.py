# SPDX-License-Identifier: Apache-2.0
"""Item tables of movies, the split with cold movies, and CoLLM's own splits."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deltarec.config import load
from deltarec.data.prepare import CoLLMText, MovieLens1M, MovieLens1MText
from deltarec.data.prepare.dataset import prepare
from deltarec.text.encode import EncodeJob, texts_of
from deltarec.text.rows import TextRows
from deltarec.text.template import load_template
from tests.conftest import ROOT

SPLITS = ("train", "valid", "test")
TITLES = [
    "Matrix, The (1999)",
    "Misérables, Les (1995)",
    "M*A*S*H (1970)",
    "Die, Monster, Die! (1965)",
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """40 users, 60 movies, 1500 ratings; one movie's plot is not known."""
    random = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    users = {"user_id": np.arange(1, 41), "gender": ["F", "M"] * 20, "age": [25] * 40}
    pd.DataFrame({**users, "occupation": [3] * 40, "zip": ["0"] * 40}).to_parquet(
        folder / "users.parquet"
    )
    movies = {
        "movie_id": np.arange(1, 61),
        "title": [*TITLES, *(f"No {i} (2000)" for i in range(56))],
        "genres": ["Action|Drama"] + ["War"] * 59,
        "year": [1999, 1995, 1970, 1965] + [2000] * 56,
        "director": ["A, B"] * 60,
        "plot": ["N/A", None] + ["Somebody goes somewhere."] * 58,
    }
    pd.DataFrame(movies).to_parquet(folder / "movies.parquet")
    pairs = random.permutation(40 * 60)[:1500]
    ratings = pd.DataFrame({"user_id": pairs // 60 + 1, "movie_id": pairs % 60 + 1})
    ratings["rating"] = random.integers(1, 6, 1500)
    ratings["pos"] = ratings.groupby("user_id").cumcount()
    ratings.to_parquet(folder / "ratings.parquet")
    return folder


def test_items_have_texts_that_read_well(raw: Path, tmp_path: Path) -> None:
    prepare(MovieLens1MText(), raw, tmp_path / "out")
    items = pq.read_table(tmp_path / "out/items")
    assert items["title"].to_pylist()[:4] == [
        *("The Matrix", "Les Misérables", "M*A*S*H", "Die, Monster, Die!")
    ]
    assert items["movie_id"].to_pylist() == [*range(1, 61)]
    assert items["genres"].to_pylist()[:2] == [["Action", "Drama"], ["War"]]
    assert items["year"].to_pylist()[0] == 1999 and items["director"].to_pylist()[0] == "A, B"
    assert items["plot"].to_pylist()[:3] == [None, None, "Somebody goes somewhere."]


def test_the_catalogue_has_all_movies_and_nothing_else(raw: Path, tmp_path: Path) -> None:
    prepare(MovieLens1MText(catalogue=3), raw, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/catalogue")
    assert rows.schema.equals(pq.read_schema(tmp_path / "out/train/part-00000.parquet"))
    assert sorted(rows["movie_id"].to_pylist()) == sorted([*range(1, 61)] * 3)
    assert rows["movie_id"].to_pylist()[:60] != [*range(1, 61)]
    for name in set(rows.column_names) - {"movie_id", "movie_trained"}:
        assert rows[name].null_count == len(rows)


def test_movielens_own_files_have_titles_alone(raw: Path, tmp_path: Path) -> None:
    """The .dat files have no plots: items say so, and the same template makes texts of the rest."""
    dat = tmp_path / "dat"
    dat.mkdir()
    for name, columns in (
        ("ratings", ["user_id", "movie_id", "rating", "pos"]),
        ("users", ["user_id", "gender", "age", "occupation", "zip"]),
        ("movies", ["movie_id", "title", "genres"]),
    ):
        rows = pd.read_parquet(raw / f"{name}.parquet")[columns].astype(str).to_numpy().tolist()
        text = "".join("::".join(row) + "\n" for row in rows)
        (dat / f"{name}.dat").write_text(text, encoding="latin-1")
    prepare(MovieLens1MText(), dat, tmp_path / "out")
    notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
    told = "the source has no director, actors, plot: null in items/, texts are of the rest"
    assert told in notes
    rows = TextRows(source=str(tmp_path / "out/items"), key="movie_id")
    movies = load(EncodeJob, ROOT / "configs/text/movies.yaml")
    texts, empty = texts_of(rows, load_template(movies.template), "")
    assert (len(texts), empty) == (60, 0)
    assert texts[1].startswith("The Matrix (1999). Action, Drama. Directed by unknown.")


def test_cold_movies_are_in_the_test_alone(raw: Path, tmp_path: Path) -> None:
    prepare(MovieLens1MText(cold_items=0.2), raw, tmp_path / "out")
    prepare(MovieLens1M(), raw, tmp_path / "plain")
    cold, plain = (
        {split: pq.read_table(tmp_path / name / split).to_pandas() for split in SPLITS}
        for name in ("out", "plain")
    )
    counts = cold["train"]["movie_id"].value_counts()
    for table in cold.values():
        expected = table["movie_id"].map(counts).fillna(0).astype(int)
        assert table["movie_trained"].tolist() == expected.tolist()
    unknown = cold["test"].loc[cold["test"]["movie_trained"] == 0, "movie_id"].unique()
    assert len(unknown) == 12
    assert not cold["valid"]["movie_id"].isin(unknown).any()
    pair = ["user_id", "movie_id"]
    for split, table in plain.items():
        warm = table[~table["movie_id"].isin(unknown)]
        found = cold[split][~cold[split]["movie_id"].isin(unknown)]
        assert found[pair].values.tolist() == warm[pair].values.tolist(), (
            "the split of movielens-1m"
        )
    assert sum(map(len, cold.values())) == 1500
    assert not pd.concat(cold.values()).duplicated(pair).any()


def test_no_movie_is_cold_if_none_is_wanted(raw: Path, tmp_path: Path) -> None:
    prepare(MovieLens1MText(cold_items=0), raw, tmp_path / "out")
    assert [len(pq.read_table(tmp_path / "out" / split)) for split in SPLITS] == [1200, 150, 150]


def test_collm(raw: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "uid": [1, 2, 1],
            "iid": [1, 2, 3],
            "label": [1, 0, 1],
            "his": [[0], [0, 3, 1], [0, 1]],
            "flag": [0, 0, 0],
            "not_cold": [1, 1, 0],
        }
    )
    folder = tmp_path / "collm"
    folder.mkdir()
    for split in SPLITS:
        rows.to_parquet(folder / f"{split}.parquet")
    items = pd.DataFrame({"iid": [1, 2, 3], "title": [TITLES[0], "Alone (1950)", TITLES[2]]})
    items.to_parquet(folder / "items.parquet")

    prepare(CoLLMText(movielens=str(raw)), folder, tmp_path / "out")
    table = pq.read_table(tmp_path / "out/test").to_pylist()
    assert [row["history"] for row in table] == [[], [3, 1], [1]]
    assert [(row["user"], row["item"], row["label"], row["warm"]) for row in table] == [
        *((1, 1, 1, 1), (2, 2, 0, 1), (1, 3, 1, 0))
    ]
    found = pq.read_table(tmp_path / "out/items").to_pylist()
    assert [row["item"] for row in found] == [1, 2, 3]
    assert [row["title"] for row in found] == ["The Matrix", "Alone", "M*A*S*H"]
    assert [row["year"] for row in found] == [1999, None, 1970]
    assert [row["genres"] for row in found] == [["Action", "Drama"], None, ["War"]]

    prepare(CoLLMText(), folder, tmp_path / "titles")
    titles = pq.read_table(tmp_path / "titles/items")
    known = {name for name in titles.column_names if titles[name].null_count < len(titles)}
    assert known == {"item", "title"} and "plot" in titles.column_names
