# SPDX-License-Identifier: Apache-2.0
"""The cut of MovieLens-1M of CoLLM (Zhang et al., 2023) as a stream, by the time of each rating."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from deltarec.data.prepare.dataset import require
from deltarec.data.prepare.stream import Events, StreamDataset

ORIGIN = "https://github.com/zyang1580/CoLLM (collm-datasets/ml-1m)"


class CoLLM(StreamDataset):
    """CoLLM's ML-1M, its three splits together, in partitions by time; the label is the data's."""

    dataset: Literal["collm-ml-1m"] = "collm-ml-1m"

    def events(self, source: Path) -> Events:
        splits = [
            pd.read_parquet(
                require(source / f"{name}.parquet", ORIGIN),
                columns=["uid", "iid", "label", "timestamp"],
            )
            for name in ("train", "valid", "test")
        ]
        rows = pd.concat(splits)
        return Events(
            rows["timestamp"].to_numpy().astype(np.int64),
            {"user": rows["uid"].to_numpy(), "item": rows["iid"].to_numpy()},
            {"label": rows["label"].to_numpy().astype(np.int8)},
        )
