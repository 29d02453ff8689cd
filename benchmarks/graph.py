# SPDX-License-Identifier: Apache-2.0
"""Graph convolution over behaviours: batched sparse products, the naive loop, the bare products.

    deltarec bench graph [--users 15449] [--items 11953] [--events 858505,180027,92180]

Forward and backward of CIGCN with a given number of hops, on random graphs of the size of mb-taobao
by default. `naive` is the loop over K² pairs of behaviours on PyTorch's sparse tensors (COO), by
autograd; `loop` the same over our own propagation. `bare` is the sparse products of the batched one
alone, of the same widths, both ways. The tests of the operators run first.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deltarec.layers.graph import Adjacency, bipartite
from deltarec.models.cigcn import CIGCN

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/layers/test_graph.py", "tests/models/test_graphs.py", "-k", "cigcn or propagation"]


def main() -> None:
    """Print the times and their ratios, as text and as one line of JSON."""
    options = _parser().parse_args()
    subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], check=True, cwd=ROOT)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    graphs = _graphs(options.users, options.items, options.events, device)
    torch.manual_seed(0)
    behaviours = [str(k) for k in range(len(graphs))]
    config = CIGCN.Config(name="cigcn", user="u", behaviours=behaviours, layers=options.layers)
    encoder = CIGCN(config, options.dim, len(graphs)).to(device)
    nodes = torch.randn(options.users + options.items, options.dim, device=device)
    coo = [_coo(graph) for graph in graphs]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "batched": lambda x: encoder(x, graphs),
        "loop": lambda x: _loop(encoder, x, [graph.propagate for graph in graphs]),
        "naive": lambda x: _loop(encoder, x, [lambda y, m=m: torch.sparse.mm(m, y) for m in coo]),
    }
    wanted = ways["naive"](nodes)
    for way in ("batched", "loop"):
        torch.testing.assert_close(ways[way](nodes), wanted, rtol=1e-4, atol=1e-4)
    milliseconds = {
        name: _time(lambda way=way: _both_ways(way, nodes), options.repeats)
        for name, way in ways.items()
    }
    milliseconds["bare"] = _time(lambda: _bare(graphs, nodes, options.layers), options.repeats)
    batched = milliseconds["batched"]
    found = {
        "device": str(device),
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "nodes": len(nodes),
        "edges": [len(graph.matrix.columns) for graph in graphs],
        "dim": options.dim,
        "layers": options.layers,
        "milliseconds": {name: round(value, 1) for name, value in milliseconds.items()},
        "naive / batched": round(milliseconds["naive"] / batched, 2),
        "loop / batched": round(milliseconds["loop"] / batched, 2),
        "batched / bare": round(batched / milliseconds["bare"], 2),
    }
    for name, value in found.items():
        print(f"{name:16} {value}")
    print(json.dumps(found))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def _loop(encoder: CIGCN, nodes: Tensor, propagate: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """CIGCN, one target behaviour after the other, one product after the other."""
    outputs, number = [], len(propagate)
    for b in range(number):
        hop = propagate[b](nodes)
        residual = hop + nodes
        total = nodes + residual
        for layer in encoder.weights:
            columns = slice(b * number, (b + 1) * number)
            weight, bias = layer.weight[columns], layer.bias[columns]  # pyright: ignore
            mixed = torch.nn.functional.leaky_relu(nodes @ weight.T + bias, 0.1)
            hop = sum(
                (mixed[:, k : k + 1] * propagate[k](hop) for k in range(number)),
                torch.zeros_like(hop),
            )
            residual = hop + residual
            total = total + residual
        outputs.append(total)
    return torch.stack(outputs, dim=1)


def _both_ways(way: Callable[[Tensor], Tensor], nodes: Tensor) -> None:
    leaf = nodes.detach().requires_grad_()
    found = way(leaf)
    torch.autograd.grad(found, leaf, torch.ones_like(found))


def _bare(graphs: list[Adjacency], nodes: Tensor, layers: int) -> None:
    """The first hop of width D, the others of width K·D; then the same by the transposed."""
    wide = nodes.repeat(1, len(graphs))
    for graph in graphs:
        for matrix in (graph.matrix, graph.transposed):
            for x in (nodes, *[wide] * (layers - 1)):
                _ = matrix @ x


def _time(function: Callable[[], None], repeats: int) -> float:
    """The least of several, in milliseconds."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def _graphs(users: int, items: int, events: list[int], device: torch.device) -> list[Adjacency]:
    """Random ones, whose items are as unequal as popularity is."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 0.7
    cumulated = np.cumsum(weights) / weights.sum()
    graphs = []
    for number in events:
        user = random.integers(0, users, number)
        item = np.searchsorted(cumulated, random.random(number)).clip(max=items - 1)
        graphs.append(Adjacency.of(bipartite(user, item, (users, items)), "left", device))
    return graphs


def _coo(graph: Adjacency) -> Tensor:
    return graph.matrix.sparse(torch.float32).to_sparse_coo().coalesce()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deltarec bench graph", description=__doc__)
    parser.add_argument("--users", type=int, default=15_449)
    parser.add_argument("--items", type=int, default=11_953)
    parser.add_argument(
        "--events",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[858_505, 180_027, 92_180],
        help="of each behaviour, with commas",
    )
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    return parser


if __name__ == "__main__":
    main()
