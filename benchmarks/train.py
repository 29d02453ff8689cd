# SPDX-License-Identifier: Apache-2.0
"""Samples per second and peak memory of a training job, by processes, beside other libraries.

    deltarec bench train --config configs/ml1m_mmoe.yaml --nproc 1 2 --rechub PYTHON

Every contender runs in processes of its own, one contender after the other, several rounds; the
median of a contender's rounds and its ratio to the plain TorchRec loop of as many processes are
printed. Ours reads Parquet; the plain loop has its batches in memory before the clock starts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WARMUP = 10
"""Steps that no contender's rate counts: they build what later steps reuse."""
PEERS = Path(__file__).parent / "peers"
OVERRIDES = ("data.valid=[]", "data.test=[]", "train.early_stopping=null", "train.epochs=100")


def ours(config: str, processes: int, steps: int, extra: list[str]) -> dict[str, Any]:
    """`deltarec train`, without evaluation; the rate leaves out the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "deltarec.cli", "train", "--config", config, "--json"]
        command += ["--run-dir", f"{folder}/run", "--nproc", str(processes)]
        bounds = (f"train.max_steps={WARMUP + steps}", f"train.log_every={WARMUP}")
        for override in (*OVERRIDES, *bounds, *extra):
            command += ["--set", override]
        result = last_json(command)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        logs = [json.loads(line) for line in lines]
        # What is logged is the rate since the start, of the steps so far.
        warm, end = (log["step"] / log["samples_per_second"] for log in (logs[0], logs[-1]))
        share = steps / (logs[-1]["step"] * (1 - warm / end))
        return {
            "samples_per_second": logs[-1]["samples_per_second"] * share,
            "peak_memory_gib": result["peak_memory_bytes"] / 2**30,
        }


def plain_torchrec(config: str, processes: int, steps: int, extra: list[str]) -> dict[str, Any]:
    """The same model written by hand on TorchRec, over batches in memory."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(PEERS / "plain_torchrec.py")]
    return last_json([*command, "--config", config, "--steps", str(steps)])


def torch_rechub(python: str, data: str, steps: int) -> dict[str, Any]:
    """torch-rechub's MMoE, trained by its own trainer on the same rows."""
    script = str(PEERS / "rechub_mmoe.py")
    return last_json([python, script, "--data", data, "--steps", str(steps)])


def last_json(command: list[str]) -> dict[str, Any]:
    """The last line of a command's output that is JSON."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench train", description=__doc__)
    parser.add_argument("--config", default="configs/ml1m_mmoe.yaml")
    parser.add_argument("--set", action="append", default=[], help="overrides for our side")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rechub", help="a Python that has torch-rechub; left out if not given")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    from deltarec.config import load
    from deltarec.job import Job

    data = load(Job, options.config).data.root()
    contenders: dict[str, Any] = {}
    for n in options.nproc:
        contenders[f"plain TorchRec, {n}"] = lambda n=n: plain_torchrec(
            options.config, n, options.steps, options.set
        )
        contenders[f"deltarec, {n}"] = lambda n=n: ours(
            options.config, n, options.steps, options.set
        )
    if options.rechub:
        contenders["torch-rechub, 1"] = lambda: torch_rechub(
            options.rechub, data, max(options.steps // 5, 20)
        )
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            rounds[name].append(run())
    print(f"{'contender, processes':24} {'samples/s':>12} {'x plain':>8} {'peak GiB':>9}")
    results = []
    for name, found in rounds.items():
        rate = statistics.median(item["samples_per_second"] for item in found)
        memory = max(item["peak_memory_gib"] for item in found)
        plain = rounds.get(f"plain TorchRec, {name.split()[-1]}")
        ratios = [
            mine["samples_per_second"] / other["samples_per_second"]
            for mine, other in zip(found, plain or found, strict=True)
        ]
        ratio = statistics.median(ratios)
        print(f"{name:24} {rate:12,.0f} {ratio:8.2f} {memory:9.2f}")
        results.append({"name": name, "samples_per_second": rate, "ratio": ratio, "gib": memory})
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
