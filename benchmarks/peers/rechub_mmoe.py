# SPDX-License-Identifier: Apache-2.0
"""torch-rechub's MMoE on prepared MovieLens-1M, in its own way: dense Adam, its data generator.

    PYTHON_WITH_TORCH_RECHUB benchmarks/peers/rechub_mmoe.py --data data/prepared/movielens-1m-…

Needs nothing of deltarec. The list of genres is left out (the library pads lists); its first genre
stands for it. Prints one JSON line: samples per second, peak memory.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import pandas as pd
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator

COLUMNS = ["user_id", "movie_id", "gender", "age", "occupation", "zip", "genre", "year", "domain"]
TASKS = ["like", "favourite"]
BATCH_SIZE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    frame = pd.read_parquet(options.data / "train", columns=COLUMNS + TASKS)
    sizes = frame[COLUMNS].max() + 1
    frame = frame.iloc[: options.steps * BATCH_SIZE]
    features = [SparseFeature(name, int(sizes[name]), embed_dim=16) for name in COLUMNS]
    model = MMOE(
        features,
        ["classification", "classification"],
        n_expert=4,
        expert_params={"dims": [256, 128]},
        tower_params_list=[{"dims": [64]}, {"dims": [64]}],
    )
    columns = {name: frame[name].to_numpy() for name in COLUMNS}
    generator = DataGenerator(columns, frame[TASKS].to_numpy())
    loader, _, _ = generator.generate_dataloader(
        x_val=columns, y_val=frame[TASKS].to_numpy(), x_test=columns,
        y_test=frame[TASKS].to_numpy(), batch_size=BATCH_SIZE,
    )  # fmt: skip
    trainer = MTLTrainer(
        model, ["classification", "classification"],
        optimizer_params={"lr": 1e-3, "weight_decay": 1e-5}, n_epoch=1, device="cpu",
    )  # fmt: skip
    start = time.perf_counter()
    trainer.train_one_epoch(loader)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "samples_per_second": len(frame) / seconds,
                "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main()
