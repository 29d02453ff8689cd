# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deltarec.data.prepare import CoLLM, MovieLensLatest, RetailRocket, SynthStream
from deltarec.data.prepare.dataset import prepare
from deltarec.data.prepare.stream import HOUR, StreamDataset, by_first_appearance, cut, earlier
from deltarec.data.prepare.synth import judge


def prepared(dataset: StreamDataset, source: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows in the order of partitions, whose number is a column; and dataset.json."""
    target = source / "prepared"
    prepare(dataset, source, target)
    folders = sorted(target.glob("date=*/hour=*"))
    assert all((folder / "_SUCCESS").is_file() for folder in folders)
    parts = [
        pd.read_parquet(folder / "part-00000.parquet").assign(partition=number)
        for number, folder in enumerate(folders)
    ]
    about = json.loads((target / "dataset.json").read_text())
    assert list(about["partitions"]) == [str(f.relative_to(target)) for f in folders]
    assert list(about["partitions"].values()) == [len(part) for part in parts]
    assert about["rows"] == {"stream": sum(map(len, parts))}
    return pd.concat(parts, ignore_index=True), about


def test_counts_are_of_what_came_before():
    """By the definition, pair by pair; ids as far apart as 64 bits allow, times that repeat."""
    random = np.random.default_rng(0)
    ids = random.choice(np.array([-(2**63), -1, 0, 7, 2**63 - 1]), 60)
    time = np.sort(random.integers(0, 20, 60))
    rows = by_first_appearance(ids)
    assert [int(r) for r in dict.fromkeys(rows.tolist())] == list(range(rows.max() + 1))
    assert len(set(zip(ids, rows, strict=True))) == len(set(ids))
    expected = ((rows[None] == rows[:, None]) & (time[None] < time[:, None])).sum(axis=1)
    assert earlier(rows, time).tolist() == expected.tolist()


def test_cuts_are_at_full_hours():
    hours = np.repeat([0, 1, 2, 30, 31], [10, 1, 9, 100, 4])
    assert cut(hours * HOUR + 59, 4) == [0, 20]  # 31 would be wanted thrice in hour 30
    assert cut(hours * HOUR, 1) == [0]


def write(folder: Path, name: str, **columns: list[Any]) -> None:
    pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet")


def test_movielens_latest(tmp_path: Path):
    write(
        tmp_path,
        "ratings",
        userId=[1, 1, 2, 2],
        movieId=[70, 10, 70, 10],
        rating_x2=[8, 7, 10, 1],
        timestamp=[5 * HOUR, 5 * HOUR, 2 * HOUR, 9 * HOUR],
    )
    write(tmp_path, "movies", movieId=[10, 70], genres=["Drama|War", "Drama"])
    rows, about = prepared(MovieLensLatest(partitions=4), tmp_path)
    assert rows["item"].tolist() == [70, 70, 10, 10]
    assert rows["like"].tolist() == [1, 1, 0, 0]
    assert [list(genres) for genres in rows["genres"]] == [[0], [0], [0, 1], [0, 1]]
    assert rows["user_row"].tolist() == [0, 1, 1, 0]
    assert rows["item_seen"].tolist() == [0, 1, 0, 1]
    assert rows["user_trained"].tolist() == [0, 0, 0, 1]
    assert about["table_sizes"] == {"user_row": 2, "item_row": 2}
    assert list(about["partitions"]) == [f"date=1970-01-01/hour={h:02}" for h in (2, 5, 9)]


def test_collm_takes_all_splits_by_time(tmp_path: Path):
    for split, time in (("train", 7), ("valid", 3), ("test", 5)):
        write(tmp_path, split, uid=[1], iid=[time], label=[1], timestamp=[time], his=[[0]])
    rows, _ = prepared(CoLLM(), tmp_path)
    assert rows["item"].tolist() == [3, 5, 7]
    assert rows["user_seen"].tolist() == [0, 1, 2]
    assert rows["user_trained"].tolist() == [0, 0, 0]


def test_retailrocket_labels_views_by_what_follows(tmp_path: Path):
    view, cart, buy = 0, 1, 2
    log = [
        (1, 5, view, 100, True),  # carted at the same second
        (1, 5, cart, 100, None),
        (1, 6, view, 200, False),  # carted before
        (1, 6, cart, 150, None),
        (2, 5, view, 300, True),  # bought just in time
        (2, 5, buy, 300 + 24 * HOUR, None),
        (2, 6, view, 300, False),  # bought too late
        (2, 6, buy, 301 + 24 * HOUR, None),
        (1, 7, view, 400, False),  # bought by another, and held out
        (2, 7, buy, 401, None),
        (1, 7, buy, 0, None),
    ]
    user, item, behavior, timestamp, wanted = map(list, zip(*log, strict=True))
    write(tmp_path, "interactions", user=user, item=item, behavior=behavior, timestamp=timestamp)
    rows, _ = prepared(RetailRocket(), tmp_path)
    assert rows["wanted"].tolist() == [int(w) for w in wanted if w is not None]


def test_the_planted_stream(tmp_path: Path):
    options = SynthStream(partitions=10, rows_per_partition=2_000, places=[300, 100], seed=3)
    rows, about = prepared(options, tmp_path)
    assert len(about["partitions"]) == 10
    items, partition = rows["item"].to_numpy(), rows["partition"].to_numpy()
    living = [len(np.unique(items[partition == p])) for p in range(10)]
    assert max(living) <= 100 < len(np.unique(items)), "ids come and go"
    assert items.min() < -(2**62) and items.max() > 2**62
    hot = [partition[items == item] for item in np.unique(items)]
    hot = [(p.min(), p.max()) for p in hot if len(p) > 50]
    assert any(first > 0 for first, _ in hot) and any(last < 9 for _, last in hot)
    best = about["best"]["label"]
    assert len(best["partition"]) == 10 and 0.75 < best["all"]["auc"] < 0.95
    assert rows["label"].to_numpy().mean() == pytest.approx(0.33, abs=0.05)
    events, probability = options._draw()
    assert judge(events.others["label"], probability) == best["all"]


def test_what_planted_ids_are_drifts():
    """The mean of an item's rows says less of the same item's rows far later."""

    def persistence(drift: float) -> float:
        options = SynthStream(
            partitions=10,
            rows_per_partition=2_000,
            places=[300, 100],
            churn=[0.0, 0.0],
            drift=drift,
        )
        events, probability = options._draw()
        item = events.ids["item"]
        first, last = slice(0, 4_000), slice(-4_000, None)
        known = np.intersect1d(item[first], item[last])
        means = [
            [probability[part][item[part] == one].mean() for one in known] for part in (first, last)
        ]
        return float(np.corrcoef(means)[0, 1])

    assert persistence(drift=0.15) < persistence(drift=0.0) - 0.2
