# SPDX-License-Identifier: Apache-2.0
"""Data of pairwise tasks: one relation a row, and pairs made of the train split alone."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare import Ciao, Dataset, LastFM
from deltarec.data.prepare.dataset import prepare
from deltarec.data.prepare.relations import neighbours


def relations(folder: Path, split: str) -> dict[tuple[str, ...], list[tuple[int, ...]]]:
    """The rows by the columns that they have."""
    found: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for row in pq.read_table(folder / split).to_pylist():
        there = {name: value for name, value in row.items() if value is not None}
        found.setdefault(tuple(there), []).append(tuple(there.values()))
    return found


def test_neighbours_are_the_nearest_by_cosine():
    """Items 0 and 1 have two users in common, 0 and 2 one, 1 and 3 two of three."""
    user = np.array([0, 0, 0, 1, 1, 2, 3, 2, 3])
    item = np.array([0, 1, 2, 0, 1, 1, 1, 3, 3])
    first, other = neighbours((user, item), 5, most=1, common=1)
    assert list(zip(first.tolist(), other.tolist(), strict=True)) == [
        (0, 1),
        (1, 0),
        (2, 0),
        (3, 1),
    ]
    first, other = neighbours((user, item), 5, most=9, common=2)
    assert set(zip(first.tolist(), other.tolist(), strict=True)) == {(0, 1), (1, 0), (1, 3), (3, 1)}


@pytest.fixture
def lastfm(tmp_path: Path) -> Path:
    """Users 10 to 19 listen to artists 100 to 104; the originals are tab-separated."""
    rows = [(user, artist) for user in range(10, 20) for artist in range(100, 105)]
    lines = [f"{user}\t{artist}\t7" for user, artist in rows]
    tables = {
        "user_artists.dat": ["userID\tartistID\tweight", *lines],
        "user_friends.dat": ["userID\tfriendID", "10\t19", "19\t10"],
        "user_taggedartists.dat": [
            "userID\tartistID\ttagID\tday\tmonth\tyear",
            *(
                f"{user}\t{artist}\t{tag}\t1\t2\t2009"
                for user, artist, tag in (
                    (10, 101, 5),
                    (11, 101, 5),
                    (10, 102, 3),
                    (10, 999, 5),
                    (11, 999, 5),
                )
            ),
        ],
    }
    for name, lines in tables.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_lastfm_from_the_original_files(lastfm: Path):
    prepare(LastFM(common=2), lastfm, lastfm / "out")
    train = relations(lastfm / "out", "train")
    held_out = [relations(lastfm / "out", split) for split in ("valid", "test")]
    listens = [pair for part in (train, *held_out) for pair in part["user", "artist"]]
    assert sorted(listens) == [(user, artist) for user in range(10) for artist in range(5)]
    assert [list(part) for part in held_out] == [[("user", "artist")]] * 2
    assert [len(part["user", "artist"]) for part in (train, *held_out)] == [40, 5, 5]
    assert sorted(train["user", "friend"]) == [(0, 9), (9, 0)]
    assert train["artist", "tag"] == [(1, 0)]
    assert {(b, a) for a, b in train["artist", "other"]} == set(train["artist", "other"])
    sizes = json.loads((lastfm / "out/dataset.json").read_text())["table_sizes"]
    assert sizes == {"user": 10, "artist": 5, "tag": 1}


def test_a_missing_file_says_where_it_is_had(lastfm: Path):
    (lastfm / "user_friends.dat").unlink()
    with pytest.raises(ValueError, match=r"user_friends.dat: there is no such file.*grouplens"):
        prepare(LastFM(), lastfm, lastfm / "out")


def test_ciao_keeps_the_split_and_pairs_items_of_train_alone(tmp_path: Path):
    ratings = {"user": [0, 0, 1, 1, 2, 2], "item": [0, 1, 0, 1, 2, 1], "split": [0, 0, 0, 0, 1, 2]}
    trust = {"user": [0, 0, 0, 2], "friend": [1, 1, 0, 0]}
    pd.DataFrame(ratings).to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame(trust).to_parquet(tmp_path / "trust.parquet")
    prepare(Ciao(), tmp_path, tmp_path / "out")
    train = relations(tmp_path / "out", "train")
    assert sorted(train["user", "item"]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert sorted(train["user", "friend"]) == [(0, 1), (2, 0)]
    assert sorted(train["item", "other"]) == [(0, 1), (1, 0)]
    assert relations(tmp_path / "out", "valid") == {("user", "item"): [(2, 2)]}
    assert relations(tmp_path / "out", "test") == {("user", "item"): [(2, 1)]}


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [(LastFM(), (164_432, 9_283, 9_284)), (Ciao(), (315_377, 14_799, 14_800))],
)
def test_real_data(data_root: Path, tmp_path: Path, dataset: Dataset, rows: tuple[int, ...]):
    source = data_root / dataset.dataset
    if not source.is_dir():
        pytest.skip(f"{dataset.dataset} is not at {source}; give its parent by --data-root")
    prepare(dataset, source, tmp_path / "out")
    counts = json.loads((tmp_path / "out/dataset.json").read_text())["rows"]
    assert tuple(counts.values()) == rows
