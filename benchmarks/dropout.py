# SPDX-License-Identifier: Apache-2.0
"""Dropout by hashes: the operator beside its plain reference, PyTorch's dropout, a linear layer.

    deltarec bench dropout [--batch 4096] [--units 256] [--threads 1]

Forward and backward, in turns. PyTorch's masks differ with the number of processes; ours do not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec_kernels import describe
from deltarec_kernels.dropout import dropout, reference

P = 0.2


def milliseconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one forward and backward."""
    start = time.perf_counter()
    function(x).backward(x.detach())
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench dropout", description=__doc__)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(describe())
    x = torch.randn(options.batch, options.units, requires_grad=True)
    keys = torch.randint(2**62, (options.batch,))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "operator": lambda x: dropout(x, keys, 0, P),
        "reference": lambda x: reference.dropout(x, keys, 0, P),
        "torch": lambda x: F.dropout(x, P),
        "linear layer": nn.Linear(options.units, options.units),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3 + options.repeats):
        for name, way in ways.items():
            times[name].append(milliseconds(way, x))
    found = {name: statistics.median(times[name][3:]) for name in ways}
    for name, value in found.items():
        print(f"{name:14} {value:8.2f} ms  {value / found['operator']:.2f} x operator")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
