# SPDX-License-Identifier: Apache-2.0
"""Samples per second, peak memory and AUC of a training job, by processes, beside other libraries.

    deltarec bench train --config configs/ml1m_mmoe.yaml --nproc 1 2 --peers PYTHON
    deltarec bench train --config configs/synth_dnn.yaml --nproc 2 --peers PYTHON --auc
    deltarec bench train --config configs/synth_dnn.yaml --variant "int8: embedding.precision=int8"

Every contender runs in processes of its own, one contender after the other, several rounds; the
median of a contender's rounds and its ratio to the plain TorchRec loop of as many processes are
printed. Ours reads Parquet; the plain loop has its batches in memory before the clock starts.

The peers are other libraries, in an environment of their own (`peers/requirements.txt`), which have
scripts for these two configurations. Theirs is one process with all cores and few steps. The test
AUC of the first task is that after the steps a contender was given.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

WARMUP = 10
"""Steps that no contender's rate counts: they build what later steps reuse."""
PEERS = Path(__file__).parent / "peers"
SCRIPTS = {
    "ml1m_mmoe": {"torch-rechub": "rechub_mmoe.py"},
    "synth_dnn": {
        "torch-rechub": "dnn_rechub.py",
        "DeepCTR-Torch": "dnn_deepctr.py",
        "FuxiCTR": "dnn_fuxictr.py",
    },
}
"""What the peers run for a configuration."""


def ours(
    options: argparse.Namespace, processes: int, overridden: Sequence[str] = ()
) -> dict[str, Any]:
    """`deltarec train`; the rate leaves out the first steps."""
    config, steps = options.config, options.steps
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "deltarec.cli", "train", "--config", config, "--json"]
        command += ["--run-dir", f"{folder}/run", "--nproc", str(processes)]
        overrides = ["data.valid=[]", "train.early_stopping=null", "train.epochs=100"]
        overrides += [f"train.max_steps={WARMUP + steps}", f"train.log_every={WARMUP}"]
        overrides += [] if options.auc else ["data.test=[]"]
        for override in (*overrides, *options.set, *overridden):
            command += ["--set", override]
        result = last_json(command)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        logs = [log for log in map(json.loads, lines) if log["split"] == "train"]
        # What is logged is the rate since the start, of the steps so far.
        warm, end = (log["step"] / log["samples_per_second"] for log in (logs[0], logs[-1]))
        share = steps / (logs[-1]["step"] * (1 - warm / end))
        return {
            "samples_per_second": logs[-1]["samples_per_second"] * share,
            "peak_memory_gib": result["peak_memory_bytes"] / 2**30,
            "table_bytes": sum(result["embedding_bytes"].values()),
            "auc": next(iter(result["test"].values()))["all"]["auc"] if options.auc else None,
        }


def plain_torchrec(options: argparse.Namespace, processes: int) -> dict[str, Any]:
    """The same model written by hand on TorchRec, over batches in memory."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(PEERS / "plain_torchrec.py")]
    command += ["--config", options.config, "--steps", str(options.steps)]
    return last_json([*command, "--auc"] if options.auc else command)


def peer(options: argparse.Namespace, script: str, data: str) -> dict[str, Any]:
    """Another library's training of the same rows by its own trainer."""
    command = [options.peers, str(PEERS / script), "--data", data]
    return last_json([*command, "--steps", str(options.peer_steps)])


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
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME: KEY=VALUE …'",
        help="also our side with these overrides, as a contender of its own; repeatable",
    )
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="a Python that has the peers; left out if not given")
    parser.add_argument("--peer-steps", type=int, default=20, help="of each peer, 4096 samples")
    parser.add_argument("--auc", action="store_true", help="evaluate on the test split too")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    from deltarec.config import load
    from deltarec.job import Job

    data = load(Job, options.config).data.root()
    contenders: dict[str, Callable[[], dict[str, Any]]] = {}
    for n in options.nproc:
        contenders[f"plain TorchRec, {n}"] = partial(plain_torchrec, options, n)
        contenders[f"deltarec, {n}"] = partial(ours, options, n)
        for variant in options.variant:
            name, _, overridden = variant.partition(":")
            contenders[f"{name.strip()}, {n}"] = partial(ours, options, n, shlex.split(overridden))
    if options.peers:
        for name, script in SCRIPTS[Path(options.config).stem].items():
            contenders[f"{name}, 1"] = partial(peer, options, script, data)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            rounds[name].append(run())
    print(
        f"{'contender, processes':24} {'samples/s':>12} {'x plain':>8} {'peak GiB':>9} {'AUC':>7} "
        f"{'tables, MB':>11}"
    )
    results = []
    for name, found in rounds.items():
        rate = statistics.median(item["samples_per_second"] for item in found)
        memory = max(item["peak_memory_gib"] for item in found)
        plain = rounds.get(f"plain TorchRec, {name.split()[-1]}")
        plain = plain or rounds[f"plain TorchRec, {options.nproc[-1]}"]
        ratios = [
            mine["samples_per_second"] / other["samples_per_second"]
            for mine, other in zip(found, plain, strict=True)
        ]
        ratio = statistics.median(ratios)
        auc = found[-1].get("auc")
        shown = "" if auc is None else f"{auc:.4f}"
        tables = found[-1].get("table_bytes")
        size = "" if tables is None else f"{tables / 1e6:,.1f}"
        print(f"{name:24} {rate:12,.0f} {ratio:8.3f} {memory:9.2f} {shown:>7} {size:>11}")
        results.append(
            {"name": name, "samples_per_second": rate, "ratio": ratio, "gib": memory, "auc": auc}
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
