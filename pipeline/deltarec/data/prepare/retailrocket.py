# SPDX-License-Identifier: Apache-2.0
"""RetailRocket as a stream of views: does the user put this item into the cart, or buy it?

A row is a view. Its label is whether the same user carts or buys the same item within `hours` from
the view on (at its own second, too). So a label is known only so long after its view; a partition
stands for the views of its hours, and in production it would be written when their labels are
known. An hour suffices for 96 % of the carts and purchases that follow within a day. The rows held
out for other protocols, whose time is 0, are left out; they tell of purchases without saying when.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from deltarec.data.prepare.dataset import require
from deltarec.data.prepare.stream import HOUR, Events, StreamDataset

ORIGIN = "multi-behaviour recommenders such as MuLE (user, item, behavior, timestamp, split)"


class RetailRocket(StreamDataset):
    """RetailRocket's views, in partitions by time; 11 % are followed by a cart or a purchase."""

    dataset: Literal["mb-retailrocket"] = "mb-retailrocket"
    hours: int = Field(default=24, ge=1)
    """Within how many hours a cart or purchase counts for a view."""

    def events(self, source: Path) -> Events:
        log = pd.read_parquet(require(source / "interactions.parquet", ORIGIN)).astype("int64")
        views = log.query("timestamp > 0 and behavior == 0").reset_index(drop=True)
        wanted = log.query("timestamp > 0 and behavior != 0")
        pairs = views.reset_index().merge(wanted, on=["user", "item"], suffixes=("", "_wanted"))
        delay = pairs["timestamp_wanted"].to_numpy() - pairs["timestamp"].to_numpy()
        label = np.zeros(len(views), dtype=np.int8)
        label[pairs["index"].to_numpy()[(delay >= 0) & (delay <= self.hours * HOUR)]] = 1
        return Events(
            views["timestamp"].to_numpy(),
            {"user": views["user"].to_numpy(), "item": views["item"].to_numpy()},
            {"wanted": label},
        )
