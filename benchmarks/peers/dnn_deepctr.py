# SPDX-License-Identifier: Apache-2.0
"""The model of configs/synth_dnn.yaml in DeepCTR-Torch's way: dense Adam, arrays in memory.

    PYTHON_WITH_DEEPCTR_TORCH benchmarks/peers/dnn_deepctr.py --data FOLDER --steps 20

Its WDL without wide columns is the plain MLP. Prints one JSON line.
"""

from clicks import DENSE, EMBED_DIM, HIDDEN, IDS, TABLE_ROWS, answer, arguments, columns
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import WDL


def main() -> None:
    options = arguments(__doc__)
    train, labels = columns(options.data / "train", options.steps * options.batch_size)
    test, test_labels = columns(options.data / "test")
    features = [SparseFeat(name, TABLE_ROWS, embedding_dim=EMBED_DIM) for name in IDS]
    features += [DenseFeat(name, 1) for name in DENSE]
    model = WDL([], features, dnn_hidden_units=HIDDEN, device="cpu", l2_reg_embedding=0)
    model.compile("adam", "binary_crossentropy")

    def fit() -> None:
        model.fit(train, labels, batch_size=options.batch_size, epochs=1, verbose=0)

    answer(fit, lambda: model.predict(test, options.batch_size).ravel(), len(labels), test_labels)


if __name__ == "__main__":
    main()
