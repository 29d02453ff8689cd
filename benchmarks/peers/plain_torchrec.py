# SPDX-License-Identifier: Apache-2.0
"""The models of ml1m_mmoe.yaml and synth_dnn.yaml, by hand on TorchRec, over tensors in memory.

    torchrun --nproc-per-node 2 benchmarks/peers/plain_torchrec.py --config configs/ml1m_mmoe.yaml

All batches are made before the clock starts; the loop is TorchRec's shortest: forward, backward,
step. Prints one JSON line: samples per second, peak memory of all ranks, and with `--auc` the test
AUC of the first task.
"""

import argparse
import json
import logging
import resource
import sys
import time
import warnings
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from deltarec.config import load
from deltarec.data.batch import Batch, Position
from deltarec.data.reader import Reader
from deltarec.distributed import process_group
from deltarec.job import Job, Split


class Ranking(nn.Module):
    """Embeddings and dense features side by side into the dense network."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        schema = job.data_schema
        tables: dict[str, list[str]] = {}
        for feature in schema.sparse:
            tables.setdefault(schema.table(feature), []).append(feature)
        self.features = list(schema.sparse)
        self.tables = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=name,
                    embedding_dim=job.embedding.dim,
                    num_embeddings=job.embedding.tables[name].rows,
                    feature_names=features,
                    pooling=PoolingType.MEAN if name == "genre" else PoolingType.SUM,
                )
                for name, features in tables.items()
            ],
            device=torch.device("meta"),
        )
        width = job.embedding.dim * len(self.features) + len(schema.dense)
        network = MMoE if job.model.heads.name == "mmoe" else DNN  # pyright: ignore
        self.network = network(job, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self.tables(batch.pooled)
        fields = [found[name] for name in self.features]
        logits = self.network(torch.cat([*fields, batch.dense], dim=1))
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, batch.labels, reduction="none"
        )
        return losses.mean(0).sum(), logits.detach()


class MMoE(nn.Module):
    """A mixture of experts for each task, `[B, width]` to logits `[B, T]`."""

    def __init__(self, job: Job, width: int) -> None:
        super().__init__()
        heads = job.model.heads.model_dump()
        self.experts = nn.ModuleList(
            layers(width, heads["hidden"], nn.GELU) for _ in range(heads["experts"])
        )
        self.gates = nn.ModuleList(nn.Linear(width, heads["experts"]) for _ in job.tasks)
        self.towers = nn.ModuleList(
            nn.Sequential(
                layers(heads["hidden"][-1], heads["tower"], nn.GELU),
                nn.Linear(heads["tower"][-1], 1),
            )
            for _ in job.tasks
        )

    def forward(self, x: Tensor) -> Tensor:
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits = [
            tower((gate(x).softmax(1).unsqueeze(1) @ experts).squeeze(1))
            for gate, tower in zip(self.gates, self.towers, strict=True)
        ]
        return torch.cat(logits, dim=1)


class DNN(nn.Sequential):
    """An MLP, `[B, width]` to the logits `[B, T]`."""

    def __init__(self, job: Job, width: int) -> None:
        hidden = job.model.trunk.model_dump()["hidden"]
        super().__init__(layers(width, hidden, nn.ReLU), nn.Linear(hidden[-1], len(job.tasks)))


def layers(width: int, hidden: list[int], activation: type[nn.Module]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for size in hidden:
        parts += [nn.Linear(width, size), activation()]
        width = size
    return nn.Sequential(*parts)


def read(job: Job, split: Split, most: int) -> list[Batch]:
    """This rank's share of the first global batches of a split."""
    reader = Reader(
        job.data.files(split), job.data_schema, job.data.reader, job.train.batch_size,
        seed=0 if split == "train" else None,
        rank=dist.get_rank(), num_ranks=dist.get_world_size(),
    )  # fmt: skip
    return list(islice(reader.read(Position(), 1), most))


@torch.no_grad()
def auc(model: nn.Module, batches: list[Batch]) -> float:
    """Of the first task, over all ranks."""
    real = torch.cat([batch.index >= 0 for batch in batches])
    logits = torch.cat([model(batch)[1][:, 0] for batch in batches])[real]
    labels = torch.cat([batch.labels[:, 0] for batch in batches])[real]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (labels.numpy(), logits.numpy()))
    return float(roc_auc_score(*map(np.concatenate, zip(*everyone, strict=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--auc", action="store_true", help="evaluate on the test split")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = load(Job, options.config)
    with process_group() as device:
        batches = read(job, "train", options.warmup + options.steps + 1)
        model = Ranking(job)
        apply_optimizer_in_backward(
            RowWiseAdagrad, model.tables.parameters(), {"lr": job.embedding.optimizer.lr}
        )
        model = DistributedModelParallel(
            model,
            device=device,
            sharders=[EmbeddingBagCollectionSharder()],  # pyright: ignore
        )
        dense = dict(in_backward_optimizer_filter(model.named_parameters()))
        dense = {name: value for name, value in dense.items() if value.numel()}
        optimizer = CombinedOptimizer(
            [
                model.fused_optimizer,
                KeyedOptimizerWrapper(
                    dense, lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
                ),
            ]
        )
        for step in range(options.warmup + options.steps):
            if step == options.warmup:
                dist.barrier()
                start = time.perf_counter()
            optimizer.zero_grad()
            model(batches[step % (len(batches) - 1)])[0].backward()
            optimizer.step()
        dist.barrier()
        seconds = time.perf_counter() - start
        peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        dist.all_reduce(peak)
        rate = options.steps * job.train.batch_size / seconds
        found = {"samples_per_second": rate, "peak_memory_gib": peak.item()}
        if options.auc:
            found["auc"] = auc(model, read(job, "test", sys.maxsize))
        if dist.get_rank() == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
