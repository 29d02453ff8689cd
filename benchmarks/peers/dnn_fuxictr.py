# SPDX-License-Identifier: Apache-2.0
"""The model of configs/synth_dnn.yaml in FuxiCTR's way: dense Adam, clipped by the norm of all.

    PYTHON_WITH_FUXICTR benchmarks/peers/dnn_fuxictr.py --data FOLDER --steps 20

Its base model, embedding and MLP layers, and its training epoch; the batches come from arrays in
memory, as with its npz loader. Prints one JSON line.
"""

from collections.abc import Iterator

import numpy as np
import torch
from clicks import (
    DENSE,
    EMBED_DIM,
    HIDDEN,
    IDS,
    LABEL,
    LEARNING_RATE,
    TABLE_ROWS,
    answer,
    arguments,
    columns,
)
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class DNN(BaseModel):
    """An MLP over the embeddings and the dense features."""

    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__(feature_map, model_root="", metrics=["AUC"], verbose=0)
        self.embedding_layer = FeatureEmbedding(feature_map, EMBED_DIM)
        width = EMBED_DIM * len(IDS) + len(DENSE)
        self.mlp = MLP_Block(width, HIDDEN, "ReLU", output_dim=1, output_activation="sigmoid")
        self.compile("adam", "binary_crossentropy", lr=LEARNING_RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = self.embedding_layer({name: inputs[name] for name in IDS}, flatten_emb=True)
        dense = torch.stack([inputs[name] for name in DENSE], dim=1)
        return {"y_pred": self.mlp(torch.cat([ids, dense], dim=1))}


def batches(
    features: dict[str, np.ndarray], labels: np.ndarray, size: int
) -> Iterator[dict[str, torch.Tensor]]:
    for first in range(0, len(labels), size):
        rows = slice(first, first + size)
        batch = {name: torch.from_numpy(column[rows]) for name, column in features.items()}
        yield {**batch, LABEL: torch.from_numpy(labels[rows])}


def main() -> None:
    options = arguments(__doc__)
    train, labels = columns(options.data / "train", options.steps * options.batch_size)
    test, test_labels = columns(options.data / "test")
    feature_map = FeatureMap("synth", "")
    feature_map.labels = [LABEL]
    for name in IDS:
        feature_map.features[name] = {
            "type": "categorical", "source": "", "vocab_size": TABLE_ROWS,
        }  # fmt: skip
    model = DNN(feature_map)
    model._max_gradient_norm, model._total_steps = 10.0, 0  # what its fit sets before an epoch
    model._eval_steps, model._stop_training = options.steps + 1, False
    answer(
        lambda: model.train_epoch(batches(train, labels, options.batch_size)),
        lambda: model.predict(batches(test, test_labels, options.batch_size)),
        len(labels),
        test_labels,
    )


if __name__ == "__main__":
    main()
