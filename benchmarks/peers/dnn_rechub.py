# SPDX-License-Identifier: Apache-2.0
"""The model of configs/synth_dnn.yaml in torch-rechub's way: dense Adam, its data generator.

    PYTHON_WITH_TORCH_RECHUB benchmarks/peers/dnn_rechub.py --data FOLDER --steps 20

Its WideDeep with an empty wide part is the plain MLP. Prints one JSON line.
"""

import torch
from clicks import (
    DENSE,
    EMBED_DIM,
    HIDDEN,
    IDS,
    LEARNING_RATE,
    TABLE_ROWS,
    answer,
    arguments,
    columns,
)
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import WideDeep
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator


def main() -> None:
    options = arguments(__doc__)
    train, labels = columns(options.data / "train", options.steps * options.batch_size)
    test, test_labels = columns(options.data / "test")
    features = [SparseFeature(name, TABLE_ROWS, embed_dim=EMBED_DIM) for name in IDS]
    features += [DenseFeature(name) for name in DENSE]
    model = WideDeep(features[-1:], features, {"dims": HIDDEN})
    loader, _, tester = DataGenerator(train, labels).generate_dataloader(
        x_val=test, y_val=test_labels, x_test=test, y_test=test_labels,
        batch_size=options.batch_size,
    )  # fmt: skip
    trainer = CTRTrainer(model, optimizer_params={"lr": LEARNING_RATE}, n_epoch=1, device="cpu")

    def predict() -> list[float]:
        return trainer.predict(trainer.model, tester)

    torch.manual_seed(0)
    answer(lambda: trainer.train_one_epoch(loader), predict, len(labels), test_labels)


if __name__ == "__main__":
    main()
