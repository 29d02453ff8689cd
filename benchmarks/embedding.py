# SPDX-License-Identifier: Apache-2.0
"""Milliseconds and bytes per second of quantised tables, beside FBGEMM's fp32 and fp16 tables.

    deltarec bench embedding --tables 10 --rows 1000000 --dim 64 --batch 4096 --ids-per-bag 20
    deltarec bench embedding --rows 1000000 10000000 --zipf 0 1.05 --bits 8 4 2 --device cuda

Every axis takes several values; all combinations are measured. The contenders of a combination run
in turn, batch by batch, in this process, so that what else the machine does hits all of them; what
is printed is the median of each, and the median of the ratios of runs that follow each other. First
the kernels' tests run, and nothing is measured when one is red. The tables are filled with random
values (pages that were never written would all be one page of zeros), and four batches take turns.

`forward` is the lookup, `forward_backward` the lookup, the gradient's way back to the rows and the
optimiser's update: with us `lookup`, `group`, `update`. FBGEMM's tables are those that TorchRec
trains (`SplitTableBatchedEmbeddingBagsCodegen`, fused optimiser); its fp16 rounds to the nearest on
CPU, ours always at random. `--step learned` is ALPT in one pass with Adam, `fixed` is LPT.

The bytes are one model for all, with m bits an element: forward reads D * m / 8 + 4 for each id
(codes and step; FBGEMM has no step) and an index of 8, and writes 4 * D a bag; backward reads 4 * D
for each id, and reads and writes codes, step and optimiser state once for each distinct row. A copy
in the same run, bytes read and written counted, says what the memory gives; caches can give more.
"""

import argparse
import importlib.util
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import fbgemm_gpu
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from deltarec_kernels import (
    Batch,
    Optimizer,
    Rounding,
    Tables,
    TableShard,
    describe,
    group,
    lookup,
    row_bytes,
    update,
)

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "cpu": ["tests/kernels/test_lookup.py", "tests/kernels/test_update.py"],
    "cuda": ["tests/kernels/test_triton.py"],
}
NUM_BATCHES, COPY_BYTES = 4, 1 << 28
INDEX_BYTES, STEP_BYTES = 8, 4
FBGEMM_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adam": EmbOptimType.ADAM,
    "rowwise_adam": EmbOptimType.PARTIAL_ROWWISE_ADAM,
}
FBGEMM_POOLING = {"sum": PoolingMode.SUM, "mean": PoolingMode.MEAN, "none": PoolingMode.NONE}


@dataclass(frozen=True)
class Shape:
    """One combination of the axes; `zipf` 0 is uniform."""

    tables: int
    rows: int
    dim: int
    batch: int
    ids_per_bag: int
    zipf: float
    pooling: Any
    optimizer: Any


@dataclass(frozen=True)
class Ids:
    """A jagged batch on the device, and what the byte model asks of it."""

    ids: Tensor
    offsets: Tensor
    gradient: Tensor
    distinct: int


class Contender(Protocol):
    """One implementation of the tables of a shape; `row_bytes` of weights and `state_bytes`."""

    row_bytes: int
    state_bytes: int

    def forward(self, batch: Ids) -> Tensor: ...

    def forward_backward(self, batch: Ids) -> None: ...


class Quantised:
    """Our tables, of random codes."""

    def __init__(self, shape: Shape, bits: int, learned: bool, device: str) -> None:
        shards = [TableShard(shape.rows, shape.dim, key) for key in range(shape.tables)]
        optimizer = Optimizer(shape.optimizer, 0.01)
        step_optimizer = Optimizer("adam", 1e-5) if learned else None
        features = range(shape.tables)
        self.tables = Tables(shards, features, bits, optimizer, step_optimizer, device)
        self.tables.codes.random_(0, 256)
        self.tables.step.fill_(1e-3)
        self.pooling = shape.pooling
        self.row_bytes = row_bytes(shape.dim, bits) + STEP_BYTES
        self.state_bytes = _state_bytes(shape) + (8 if learned else 0)
        self.number = 0

    def forward(self, batch: Ids) -> Tensor:
        return lookup(self.tables, batch.ids, batch.offsets, pooling=self.pooling)

    def forward_backward(self, batch: Ids) -> None:
        self.forward(batch)
        groups = group(self.tables, batch.ids, batch.offsets)
        train = Batch(groups, batch.offsets, pooling=self.pooling)
        update(self.tables, train, batch.gradient, self.number, Rounding())
        self.number += 1


class Fbgemm:
    """FBGEMM's tables, of random values."""

    def __init__(self, shape: Shape, bits: int, device: str) -> None:
        location, compute = EmbeddingLocation.HOST, ComputeDevice.CPU
        if device == "cuda":
            location, compute = EmbeddingLocation.DEVICE, ComputeDevice.CUDA
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(shape.rows, shape.dim, location, compute)] * shape.tables,
            weights_precision=SparseType.FP32 if bits == 32 else SparseType.FP16,
            optimizer=FBGEMM_OPTIMIZERS[shape.optimizer],
            learning_rate=0.01,
            pooling_mode=FBGEMM_POOLING[shape.pooling],
        )
        self.tables.init_embedding_weights_uniform(-0.1, 0.1)
        self.row_bytes = shape.dim * bits // 8
        self.state_bytes = _state_bytes(shape)

    def forward(self, batch: Ids) -> Tensor:
        return self.tables(batch.ids, batch.offsets)

    def forward_backward(self, batch: Ids) -> None:
        self.forward(batch).backward(batch.gradient)


def _state_bytes(shape: Shape) -> int:
    sizes = {None: 0, "row": 4, "element": 4 * shape.dim}
    return sum(sizes[kind] for kind in Optimizer(shape.optimizer, 0).moments)


def contenders(shape: Shape, options: argparse.Namespace) -> dict[str, Contender]:
    """By name, FBGEMM's fp32 first; FBGEMM on CPU has no Adam."""
    found: dict[str, Contender] = {}
    if options.device == "cuda" or "adam" not in shape.optimizer:
        found |= {f"FBGEMM fp{b}": Fbgemm(shape, b, options.device) for b in (32, 16)}
    for bits, step in itertools.product(options.bits, options.step):
        name = f"int{bits}, step {step}"
        found[name] = Quantised(shape, bits, step == "learned", options.device)
    return found


def batches(shape: Shape, device: str) -> list[Ids]:
    """Ids by Zipf's law over rows in random order, every bag of the same length."""
    random = torch.Generator().manual_seed(0)
    shares = torch.arange(1, shape.rows + 1, dtype=torch.float64).pow(-shape.zipf).cumsum(0)
    order = torch.randperm(shape.rows, generator=random)
    bags = shape.tables * shape.batch
    offsets = torch.arange(0, bags * shape.ids_per_bag + 1, shape.ids_per_bag, device=device)
    pooled = shape.pooling != "none"
    rows, columns = (shape.batch, shape.tables) if pooled else (bags * shape.ids_per_bag, 1)
    made = []
    for _ in range(NUM_BATCHES):
        draws = torch.rand(bags * shape.ids_per_bag, generator=random, dtype=torch.float64)
        rank = torch.searchsorted(shares, draws * shares[-1]).clamp(max=shape.rows - 1)
        ids = order[rank]
        by_table = ids.view(shape.tables, -1).unbind()
        distinct = sum(len(own.unique()) for own in by_table)
        gradient = torch.randn(rows, columns * shape.dim, generator=random) * 1e-3
        made.append(Ids(ids.to(device), offsets, gradient.to(device), distinct))
    return made


def num_bytes(shape: Shape, contender: Contender, mode: str, batch: Ids) -> int:
    """Bytes of one call by the model in the module's docstring."""
    num_ids = len(batch.ids)
    vectors = num_ids if shape.pooling == "none" else shape.tables * shape.batch
    total = num_ids * (contender.row_bytes + INDEX_BYTES) + 4 * shape.dim * vectors
    if mode == "forward_backward":
        total += 4 * shape.dim * num_ids
        total += 2 * batch.distinct * (contender.row_bytes + contender.state_bytes)
    return total


def timed(function: Callable[[], object], device: str) -> float:
    """Seconds of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: Shape, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One result for each mode and contender."""
    sides, data = contenders(shape, options), batches(shape, options.device)
    source = torch.ones(COPY_BYTES // 4, device=options.device)
    target = torch.zeros_like(source)
    results = []
    for mode in options.mode:
        seconds: dict[str, list[float]] = {name: [] for name in (*sides, "copy")}
        for repeat in range(-NUM_BATCHES, options.repeats):  # the first ones warm up
            for name, side in sides.items():
                call = partial(getattr(side, mode), data[repeat % NUM_BATCHES])
                seconds[name].append(timed(call, options.device))
            seconds["copy"].append(timed(partial(target.copy_, source), options.device))
        seconds = {name: took[NUM_BATCHES:] for name, took in seconds.items()}
        copy = 2 * COPY_BYTES / statistics.median(seconds["copy"])
        for name, side in sides.items():
            middle = statistics.median(seconds[name])
            mean_bytes = statistics.mean(num_bytes(shape, side, mode, batch) for batch in data)
            rate = mean_bytes / middle
            found = {"mode": mode, "contender": name, **asdict(shape), "milliseconds": 1e3 * middle}
            found |= {"gigabytes_per_second": rate / 1e9, "fraction_of_copy": rate / copy}
            for other in ("FBGEMM fp32", "FBGEMM fp16"):
                if other in sides:
                    pairs = zip(seconds[other], seconds[name], strict=True)
                    found[f"times {other}"] = statistics.median(a / b for a, b in pairs)
            results.append(found)
    return results


def show(shape: Shape, results: list[dict[str, Any]]) -> None:
    print(", ".join(f"{key} {value}" for key, value in asdict(shape).items()))
    print(f"{'':42} {'ms':>9} {'GB/s':>7} {'of copy':>8} {'x fp32':>7} {'x fp16':>7}")
    for found in results:
        ratios = (found.get(f"times FBGEMM fp{bits}") for bits in (32, 16))
        shown = " ".join(f"{'-':>7}" if ratio is None else f"{ratio:7.2f}" for ratio in ratios)
        print(
            f"  {found['mode']:18} {found['contender']:21} {found['milliseconds']:9.2f} "
            f"{found['gigabytes_per_second']:7.1f} {found['fraction_of_copy']:8.0%} {shown}"
        )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of milliseconds: a panel for each mode, a group for each shape."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    axes = [field.name for field in fields(Shape)]
    swept = [name for name in axes if len({found[name] for found in results}) > 1]

    def label(found: dict[str, Any]) -> str:
        return "\n".join(f"{axis} {found[axis]}" for axis in swept)

    modes, names, labels = (
        list(dict.fromkeys(key(found) for found in results))
        for key in (itemgetter("mode"), itemgetter("contender"), label)
    )
    figure, panels = pyplot.subplots(len(modes), 1, squeeze=False, figsize=(9, 3.5 * len(modes)))
    for mode, panel in zip(modes, panels[:, 0], strict=True):
        for index, name in enumerate(names):
            own = [
                found for found in results if (found["mode"], found["contender"]) == (mode, name)
            ]
            places = [labels.index(label(found)) + index / (len(names) + 1) for found in own]
            heights = [found["milliseconds"] for found in own]
            panel.bar(places, heights, 1 / (len(names) + 1), label=name)
        panel.set_xticks([place + 0.3 for place in range(len(labels))], labels)
        panel.set_ylabel("milliseconds")
        panel.set_title(mode.replace("_", " + "))
        panel.legend()
    figure.tight_layout()
    figure.savefig(path)


def check_kernels(device: str) -> None:
    """Run the device's kernel tests; exits when one is red."""
    command = [sys.executable, "-m", "pytest", "--quiet", "-x", *TESTS[device]]
    print(f"first the kernels' tests: {' '.join(TESTS[device])}", flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:])
        sys.exit("the kernels' tests are red: nothing is measured")
    print(done.stdout.splitlines()[-1])


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on besides the shape."""
    name = platform.machine()
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    versions = {"torch": torch.__version__, "fbgemm": fbgemm_gpu.__version__}
    return {"machine": name, "threads": torch.get_num_threads(), "kernels": describe(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="deltarec bench embedding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for axis, default in (
        ("tables", 10),
        ("rows", 1_000_000),
        ("dim", 64),
        ("batch", 4096),
        ("ids-per-bag", 20),
    ):
        parser.add_argument(f"--{axis}", type=int, nargs="+", default=[default])
    parser.add_argument("--zipf", type=float, nargs="+", default=[0.0, 1.05])
    parser.add_argument("--bits", type=int, nargs="+", default=[8], choices=(8, 4, 2))
    parser.add_argument("--pooling", nargs="+", default=["sum"], choices=list(FBGEMM_POOLING))
    parser.add_argument(
        "--optimizer", nargs="+", default=["rowwise_adagrad"], choices=list(FBGEMM_OPTIMIZERS)
    )
    parser.add_argument("--step", nargs="+", default=["fixed"], choices=("fixed", "learned"))
    modes = ("forward", "forward_backward")
    parser.add_argument("--mode", nargs="+", default=list(modes), choices=modes)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="on CPU; all cores if not given")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/bench_embedding.json"))
    parser.add_argument("--plot", type=Path, help="an image; needs matplotlib, in the extra `plot`")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'deltarec[plot]'")
    if options.threads:
        torch.set_num_threads(options.threads)
    check_kernels(options.device)
    about = machine(options)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = []
    axes = [getattr(options, field.name) for field in fields(Shape)]
    for shape in (Shape(*values) for values in itertools.product(*axes)):
        found = measure(shape, options)
        show(shape, found)
        results += found
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
