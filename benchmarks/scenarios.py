# SPDX-License-Identifier: Apache-2.0
"""What scenario modules cost on top of their trunk, and how that grows with the scenarios.

    deltarec bench scenarios --output scenarios.json

8 fields of 16 columns, trunk mlp 256-128, batch 4096 of scenarios drawn uniformly, this process's
threads. `forward + backward` is the module with its trunk, gradients of the fields included; `step`
adds a head, its loss and a dense Adam. No tables: they cost the same under every module. Modules
and numbers of scenarios take turns within each round, and the table has medians over the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.config import validate
from deltarec.distributed import process_group
from deltarec.layers.batch_norm import set_real_samples
from deltarec.models import SCENARIO_MODULES, TRUNKS
from deltarec.models.roles import Fields, FieldShapes, ScenarioModule

SHAPES = FieldShapes((16,) * 8, 0, tuple(f"field {i}" for i in range(8)))
TRUNK = {"name": "mlp", "hidden": [256, 128]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({"name": "none"}, TRUNK),
    "towers": ({"name": "towers", "hidden": [64]}, TRUNK),
    "hamur": ({"name": "hamur"}, TRUNK),
    "hamur, rank 35": ({"name": "hamur", "rank": 35}, TRUNK),
    "hierrec": ({"name": "hierrec"}, TRUNK),
    "hierrec, full rank": ({"name": "hierrec", "rank": None}, TRUNK),
    "star over the trunk": ({"name": "star", "hidden": [64]}, TRUNK),
    "star instead of it": ({"name": "star", "hidden": [256, 128]}, {**TRUNK, "hidden": []}),
    "pepnet": ({"name": "pepnet"}, TRUNK),
    "adasparse": ({"name": "adasparse"}, TRUNK),
    "sar_net": ({"name": "sar_net"}, TRUNK),
    "m3oe": ({"name": "m3oe", "hidden": [64]}, TRUNK),
}


def build(case: str, num_scenarios: int) -> ScenarioModule:
    options, below = CASES[case]
    kind, trunk = SCENARIO_MODULES[options["name"]], TRUNKS[below["name"]]
    config = validate(trunk.Config, below, case)
    return kind(
        validate(kind.Config, options, case),
        SHAPES,
        num_scenarios,
        lambda shapes: trunk(config, shapes),
    )


def work(case: str, num_scenarios: int, samples: int) -> dict[str, Callable[[], None]]:
    """One forward and backward, and one step, each to be called again and again."""
    torch.manual_seed(0)
    module = build(case, num_scenarios)
    head = nn.Linear(module.output_dim, 1)
    set_real_samples(module, torch.ones(samples, dtype=torch.bool))
    vectors = [torch.randn(samples, dim, requires_grad=True) for dim in SHAPES.dims]
    fields = Fields(vectors, torch.empty(samples, 0))
    scenario = torch.randint(num_scenarios, (samples,))
    label = torch.randint(2, (samples, 1)).float()
    upstream = torch.randn(samples, module.output_dim)
    model = nn.ModuleList([module, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def forget() -> None:
        model.zero_grad()
        for vector in vectors:
            vector.grad = None

    def forward_and_backward() -> None:
        forget()
        module(fields, scenario).backward(upstream)

    def step() -> None:
        forget()
        logit: Tensor = head(module(fields, scenario))
        F.binary_cross_entropy_with_logits(logit, label).backward()
        optimizer.step()

    return {"forward + backward": forward_and_backward, "step": step}


def milliseconds(function: Callable[[], None], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench scenarios", description=__doc__)
    parser.add_argument("--scenarios", type=int, nargs="+", default=[3, 30, 300])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--modules", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    cases = list(dict.fromkeys(["none", *options.modules]))
    times: dict[tuple[str, int, str], list[float]] = {}
    with process_group():
        for _ in range(options.rounds):
            for case in cases:
                for count in options.scenarios:
                    for name, function in work(case, count, options.samples).items():
                        found = milliseconds(function, options.repeats)
                        times.setdefault((case, count, name), []).append(found)
    results = []
    few, many = min(options.scenarios), max(options.scenarios)
    for name in ("forward + backward", "step"):
        counts = "".join(f"{count:>9}" for count in options.scenarios)
        print(f"{name}, ms{'':<{22 - len(name)}}{counts}  {many}/{few}  of trunk at {few}")
        for case in cases:
            row = {c: statistics.median(times[case, c, name]) for c in options.scenarios}
            growth = _ratio(times[case, many, name], times[case, few, name])
            cost = _ratio(times[case, few, name], times["none", few, name])
            values = "".join(f"{value:9.1f}" for value in row.values())
            print(f"{case:26}{values}  {growth:5.2f}  {cost:5.2f}")
            results.append(
                {"what": name, "module": case, "ms": row, "growth": growth, "of_trunk": cost}
            )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


def _ratio(above: list[float], below: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
