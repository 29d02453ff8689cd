# SPDX-License-Identifier: Apache-2.0
"""KuaiRand, the 15-core cut with explicit feedback: clicks and what comes after them, in time.

Every row is an exposure: a video shown to a user at a millisecond. `is_click` is the label, and
what follows a click is a label of its own, 1 only where there was a click: 12 % of the raw follows
and 3 % of the long views have none. How long a video was played is known only afterwards and stays
out, as does the column `label`, which nobody documents. So do the published features of videos:
their ids are of another numbering.

Rows are split by time. Histories reach over the splits' borders, since what happened before a test
row is known when it is served; they are strictly causal, and a ninth of the rows share their
millisecond with another of the user's. The log dates what follows a click by the exposure, so
histories of it (`engaged`, `long_viewed`) know it from then on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from deltarec.data.prepare.dataset import Dataset, require, write_split
from deltarec.data.prepare.event_log import EventLog, Feedback, aligned, by_user_and_time

ORIGIN = "https://kuairand.com (the cut KuaiRand-explicit, as Parquet)"
CHUNK_ROWS = 8_192
AFTER_CLICK = {
    "long_view": "long_view",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "profile_enter": "is_profile_enter",
}
ENGAGEMENTS = ["follow", "comment", "forward", "profile_enter"]
USER_FEATURES = [
    *["user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range"],
    *["fans_user_num_range", "friend_user_num_range", "register_days_range"],
]


class KuaiRandExplicit(Dataset):
    """KuaiRand-explicit, split 80/10/10 by time, with histories of feedback."""

    dataset: Literal["kuairand-explicit"] = "kuairand-explicit"
    max_history: int = Field(default=30, ge=1)
    """Most videos of `clicks` and of `engaged`: the user's latest before this exposure."""
    max_exposures: int = Field(default=300, ge=1)
    """Most videos of `recent_unclicked`."""
    each_side: int = Field(default=5, ge=1)
    """How many exposures before, and after, each click are aligned with it, by rank."""
    max_gap_ms: int | None = Field(default=None, ge=0)
    """And none further than this from the click; any if not given."""

    def write(self, source: Path, target: Path) -> dict[str, Any]:
        events = _read(source)
        histories = _Histories(self, events)
        by_time = np.argsort(events["time_ms"].to_numpy(), kind="stable")
        for split, rows in zip(("train", "valid", "test"), _cut(events, by_time), strict=True):
            tables = histories.tables(rows)
            write_split(target, split, len(rows), tables)
        ids = ["user_id", "video_id", "hour", *USER_FEATURES]
        return {
            "table_sizes": {name: int(events[name].to_numpy().max()) + 1 for name in ids},
            "notes": [
                "all histories hold video ids (the table of video_id), oldest first",
                "unclicked and long_viewed have a list for each of clicks",
                "labels after a click are 0 where there was none",
            ],
        }


class _Histories:
    """Rows with their histories; events are by user and time."""

    def __init__(self, options: KuaiRandExplicit, events: pd.DataFrame) -> None:
        self.options = options
        self.columns = pa.Table.from_pandas(events, preserve_index=False).replace_schema_metadata()
        self.video = events["video_id"].to_numpy()
        log = EventLog(events["user_id"].to_numpy(), events["time_ms"].to_numpy())
        clicked = events["click"].to_numpy() == 1
        engaged = np.logical_or.reduce([events[name] == 1 for name in ENGAGEMENTS])
        self.clicks = Feedback(log, clicked)
        self.unclicked = Feedback(log, ~clicked)
        self.engaged = Feedback(log, engaged)
        self.beside = {
            "unclicked": self.unclicked,
            "long_viewed": Feedback(log, events["long_view"].to_numpy() == 1),
        }
        self.windows = {
            name: feedback.around(self.clicks, options.each_side, options.max_gap_ms)
            for name, feedback in self.beside.items()
        }

    def tables(self, rows: np.ndarray) -> Iterator[pa.Table]:
        """Tables of the given rows, in this order."""
        for begin in range(0, len(rows), CHUNK_ROWS):
            yield self._table(rows[begin : begin + CHUNK_ROWS])

    def _table(self, rows: np.ndarray) -> pa.Table:
        options = self.options
        clicks = self.clicks.last(rows, options.max_history)
        engaged = self.engaged.last(rows, options.max_history)
        unclicked = self.unclicked.last(rows, options.max_exposures)
        columns = {
            "clicks": clicks.lists(self._videos(self.clicks)),
            "engaged": engaged.lists(self._videos(self.engaged)),
            "recent_unclicked": unclicked.lists(self._videos(self.unclicked)),
        }
        for name, feedback in self.beside.items():
            videos = self._videos(feedback)
            columns[name] = aligned(clicks, self.windows[name], feedback, rows, videos)
        table = self.columns.take(pa.array(rows))
        for name, lists in columns.items():
            table = table.append_column(name, lists)
        return table

    def _videos(self, feedback: Feedback) -> np.ndarray:
        return self.video[feedback.events]


def _read(source: Path) -> pd.DataFrame:
    """All exposures by user and time: ids, what is known before the click, labels."""
    raw = pd.read_parquet(require(source / "interactions.parquet", ORIGIN))
    users = pd.read_parquet(require(source / "user_features_pure.parquet", ORIGIN))
    user, time_ms = (raw[name].to_numpy("int64") for name in ("user_id", "time_ms"))
    raw = raw.iloc[by_user_and_time(user, time_ms)].reset_index(drop=True)
    features_of = pd.Index(users["user_id"]).get_indexer(pd.Index(raw["user_id"]))
    if (features_of < 0).any():
        raise ValueError(
            f"{source}: user {raw['user_id'][features_of < 0].iloc[0]} of interactions.parquet is "
            "not in user_features_pure.parquet; get the dataset again, all files of one version"
        )
    click = raw["is_click"].astype("int8")
    return pd.DataFrame(
        {
            "user_id": raw["user_id"].astype("int64"),
            "video_id": _encode(raw["video_id"]),
            "time_ms": raw["time_ms"].astype("int64"),
            "hour": raw["hourmin"].astype("int64") // 100,
            "duration_ms": raw["duration_ms"].astype("int64"),
            **{name: _encode(users[name])[features_of] for name in USER_FEATURES},
            "click": click,
            **{name: raw[column].astype("int8") & click for name, column in AFTER_CLICK.items()},
        }
    )


def _cut(events: pd.DataFrame, by_time: np.ndarray) -> list[np.ndarray]:
    """Rows of train, valid and test; those of one millisecond are in one split."""
    time_ms = events["time_ms"].to_numpy()[by_time]
    cuts = [np.searchsorted(time_ms, time_ms[len(time_ms) * part // 10]) for part in (8, 9)]
    return np.split(by_time, cuts)


def _encode(values: Any) -> np.ndarray:
    """Position of each value among the sorted distinct ones, int64."""
    return np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)
