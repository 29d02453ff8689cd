# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deltarec.data.prepare import KuaiRandExplicit
from deltarec.data.prepare.dataset import prepare
from deltarec.data.prepare.kuairand_explicit import USER_FEATURES

LATER = ["long_view", "follow", "comment", "forward", "profile_enter"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small log, not in order, where many of a user's exposures share their time."""
    rng = np.random.default_rng(0)
    log = {
        "user_id": rng.choice([3, 5, 9], 200).astype("uint16"),
        "video_id": rng.choice([7, 100, 31_000_000, 44, 45], 200).astype("uint32"),
        "hourmin": rng.choice([0, 2300], 200).astype("uint16"),
        "time_ms": rng.integers(2**41, 2**41 + 60, 200).astype("uint64"),
        "duration_ms": rng.integers(0, 9, 200).astype("uint32"),
    }
    flags = ["is_click", "long_view", "is_follow", "is_comment", "is_forward", "is_profile_enter"]
    log |= {name: rng.integers(0, 2, 200).astype("uint8") for name in flags}
    pd.DataFrame(log).to_parquet(tmp_path / "interactions.parquet")
    users = pd.DataFrame({"user_id": np.arange(12, dtype="uint16")})
    for name in USER_FEATURES:
        users[name] = [f"[{i % 4},{name})" for i in range(12)]
    users.to_parquet(tmp_path / "user_features_pure.parquet")
    return tmp_path


def rows_of(folder: Path) -> list[list[dict[str, Any]]]:
    return [pq.read_table(folder / split).to_pylist() for split in ("train", "valid", "test")]


@pytest.mark.parametrize("gap", [None, 1500])
def test_histories_are_of_what_was_before(raw: Path, gap: int | None):
    options = KuaiRandExplicit(max_history=4, max_exposures=6, each_side=2, max_gap_ms=gap)
    prepare(options, raw, raw / "out")
    splits = rows_of(raw / "out")
    rows = [row for split in splits for row in split]
    assert len(rows) == 200 and [len(split) for split in splits] == pytest.approx(
        [160, 20, 20], abs=10
    )
    borders = [[row["time_ms"] for row in split] for split in splits]
    assert borders[0][-1] < borders[1][0] and borders[1][-1] < borders[2][0]
    assert borders == [sorted(times) for times in borders]
    for target in rows:
        past = [
            row
            for row in rows  # which are by time
            if row["user_id"] == target["user_id"] and row["time_ms"] < target["time_ms"]
        ]
        clicks = [i for i, row in enumerate(past) if row["click"]][-4:]
        videos = [row["video_id"] for row in past]
        assert target["clicks"] == [videos[i] for i in clicks]
        assert target["recent_unclicked"] == [r["video_id"] for r in past if not r["click"]][-6:]
        engaged = [r["video_id"] for r in past if any(r[name] for name in LATER[1:])]
        assert target["engaged"] == engaged[-4:]
        for name, kind, wanted in (("unclicked", "click", 0), ("long_viewed", "long_view", 1)):
            those = [j for j, row in enumerate(past) if row[kind] == wanted]
            lists = []
            for i in clicks:
                near = [j for j in those if j < i][-2:], [j for j in those if j > i][:2]
                beside = [*near[0], *([i] if i in those else []), *near[1]]
                if gap is not None:
                    times = {j: abs(past[j]["time_ms"] - past[i]["time_ms"]) for j in beside}
                    beside = [j for j in beside if times[j] <= gap]
                lists.append([videos[j] for j in beside])
            assert target[name] == lists


def test_what_follows_a_click_needs_one(raw: Path):
    prepare(KuaiRandExplicit(), raw, raw / "out")
    rows = [row for split in rows_of(raw / "out") for row in split]
    for name in LATER:
        assert {row[name] for row in rows if row["click"]} == {0, 1}
        assert {row[name] for row in rows if not row["click"]} == {0}
    assert {row["video_id"] for row in rows} == set(range(5))
    assert {row["user_active_degree"] for row in rows} <= {0, 1, 2, 3}
    about = json.loads((raw / "out" / "dataset.json").read_text())
    assert about["table_sizes"]["video_id"] == 5 and about["table_sizes"]["user_id"] == 10


def test_a_user_without_features_is_an_error(raw: Path):
    users = pd.read_parquet(raw / "user_features_pure.parquet")
    users[users["user_id"] != 5].to_parquet(raw / "user_features_pure.parquet")
    with pytest.raises(ValueError, match=r"user 5 of interactions\.parquet is not in user_feat"):
        prepare(KuaiRandExplicit(), raw, raw / "out")


def test_the_real_data(kuairand: Path, tmp_path: Path):
    prepare(KuaiRandExplicit(), kuairand, tmp_path / "out")
    tables = [pq.read_table(tmp_path / "out" / split) for split in ("train", "valid", "test")]
    assert [len(table) for table in tables] == [33_462, 4_183, 4_183]
    clicks = sum(int(np.sum(table["click"])) for table in tables)
    assert clicks == 27_484
    for table in tables:
        assert not {"label", "play_time_ms", "comment_stay_time"} & set(table.column_names)
