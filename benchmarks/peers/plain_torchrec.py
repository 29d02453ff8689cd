# SPDX-License-Identifier: Apache-2.0
"""The model of configs/ml1m_mmoe.yaml, written by hand on TorchRec, over tensors in memory.

    torchrun --nproc-per-node 2 benchmarks/peers/plain_torchrec.py --config configs/ml1m_mmoe.yaml

All batches are made before the clock starts; the loop is TorchRec's shortest: forward, backward,
step. Prints one JSON line: samples per second, peak memory of all ranks.
"""

import argparse
import json
import logging
import resource
import time
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from deltarec.config import load
from deltarec.data.batch import Position
from deltarec.data.reader import Reader
from deltarec.distributed import process_group
from deltarec.job import Job


class MMoE(nn.Module):
    """Experts over the concatenated embeddings, a gate and a tower for each task."""

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
        heads = job.model.heads.model_dump()
        width = job.embedding.dim * len(self.features) + len(schema.dense)
        self.experts = nn.ModuleList(
            layers(width, heads["hidden"]) for _ in range(heads["experts"])
        )
        self.gates = nn.ModuleList(nn.Linear(width, heads["experts"]) for _ in job.tasks)
        self.towers = nn.ModuleList(
            nn.Sequential(
                layers(heads["hidden"][-1], heads["tower"]), nn.Linear(heads["tower"][-1], 1)
            )
            for _ in job.tasks
        )

    def forward(self, ids: KeyedJaggedTensor, dense: Tensor, labels: Tensor) -> Tensor:
        found = self.tables(ids)
        x = torch.cat([*(found[name] for name in self.features), dense], dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        logits = [
            tower((gate(x).softmax(1).unsqueeze(1) @ experts).squeeze(1))
            for gate, tower in zip(self.gates, self.towers, strict=True)
        ]
        losses = nn.functional.binary_cross_entropy_with_logits(
            torch.cat(logits, dim=1), labels, reduction="none"
        )
        return losses.mean(0).sum()


def layers(width: int, hidden: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for size in hidden:
        parts += [nn.Linear(width, size), nn.GELU()]
        width = size
    return nn.Sequential(*parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=10)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = load(Job, options.config)
    with process_group() as device:
        reader = Reader(
            job.data.files("train"), job.data_schema, job.data.reader, job.train.batch_size,
            seed=0, rank=dist.get_rank(), num_ranks=dist.get_world_size(),
        )  # fmt: skip
        batches = [
            (batch.pooled, batch.dense, batch.labels) for batch in reader.read(Position(), 1)
        ]
        model = MMoE(job)
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
            model(*batches[step % (len(batches) - 1)]).backward()
            optimizer.step()
        dist.barrier()
        seconds = time.perf_counter() - start
        peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        dist.all_reduce(peak)
        if dist.get_rank() == 0:
            rate = options.steps * job.train.batch_size / seconds
            print(json.dumps({"samples_per_second": rate, "peak_memory_gib": peak.item()}))


if __name__ == "__main__":
    main()
