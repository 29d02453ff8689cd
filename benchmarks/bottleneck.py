# SPDX-License-Identifier: Apache-2.0
"""How many directions HAMUR's bottleneck uses, on test samples of a trained run.

    deltarec bench bottleneck --run-dir runs/ml1m_hamur-… [--samples 4096]

The effective rank of an adapter's units `[samples, bottleneck]` is the exponential of the entropy
of their centred matrix's singular values, divided by their sum: between 1 and the bottleneck's
width. The checkpoint is the best one, where there is one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarec.config import load
from deltarec.distributed import process_group
from deltarec.job import Job
from deltarec.models.hamur import HAMUR
from deltarec.run_folder import RunFolder
from deltarec.streaming import trainer_of


def main() -> None:
    """Print the effective rank of each adapter, as text and as one line of JSON."""
    options = _parser().parse_args()
    job = load(Job, options.run_dir / "config.yaml", [])
    if not isinstance(job.model.scenario, HAMUR.Config):
        raise SystemExit(f"{options.run_dir}: model.scenario is not hamur")
    with process_group(threads=options.threads) as device:
        trainer = trainer_of(job, RunFolder(options.run_dir), device)
        trainer.checkpoints.load(None)
        module: Any = trainer.model.module
        units: dict[str, list[Tensor]] = {}
        for level, adapter in enumerate(module.network.scenario.adapters):
            seen = units[f"adapter_{level}"] = []
            adapter.activation.register_forward_hook(lambda _, __, y, seen=seen: seen.append(y))
        trainer.evaluator.evaluate("test")
    found = {
        name: effective_rank(torch.cat(seen)[: options.samples]) for name, seen in units.items()
    }
    for name, value in found.items():
        print(f"{name}: {value:.2f} of {job.model.scenario.bottleneck}")
    print(json.dumps(found))
    if options.output:
        options.output.write_text(json.dumps(found))


def effective_rank(x: Tensor) -> float:
    """Of rows `[n, D]`, float: from 1 to D."""
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser


if __name__ == "__main__":
    main()
