# SPDX-License-Identifier: Apache-2.0
"""What the peers on configs/synth_dnn.yaml share: its shape, its columns, what they answer.

Needs nothing of deltarec: it runs in the peers' own environment.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

IDS = [f"id_{i}" for i in range(26)]
DENSE = [f"dense_{i}" for i in range(13)]
LABEL = "task_0"
TABLE_ROWS, EMBED_DIM, HIDDEN = 1_000_000, 16, [256, 128]
LEARNING_RATE = 1e-3


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of train and test")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4096)
    return parser.parse_args()


def columns(folder: Path, most: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The features by name, `[rows]` each, and the labels, of the first rows of a split."""
    table = pq.read_table(folder, columns=[*IDS, *DENSE, LABEL]).slice(0, most)
    label = table[LABEL].to_numpy().astype(np.float32)
    return {name: table[name].to_numpy() for name in [*IDS, *DENSE]}, label


def answer(
    train: Callable[[], object],
    predict: Callable[[], np.ndarray],
    num_samples: int,
    labels: np.ndarray,
) -> None:
    """Time the training of so many samples, score the test rows, print one JSON line."""
    start = time.perf_counter()
    train()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    auc = float(roc_auc_score(labels, predict()))
    found = {"samples_per_second": num_samples / seconds, "peak_memory_gib": peak, "auc": auc}
    print(json.dumps(found))
