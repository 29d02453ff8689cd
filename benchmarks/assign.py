# SPDX-License-Identifier: Apache-2.0
"""Ids to rows a second on one core, by policy.

    deltarec bench assign

A stream of ids of which a half were never there before. The others are drawn from those that came
last, a quarter as many as there are rows, so that LRU has them all. Timed is all that a rank does
with its batches: distinct ids, rows, rows of each sample. The map is full after a while, so every
new id evicts one where the policy evicts. Memory is that of the map, by row.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from deltarec.embeddings.assignment import hashed_rows
from deltarec_kernels import IdMap, Policy, deduplicate, describe

BUCKETS = 24
POLICIES = {
    "hash": None,
    "frequency": Policy("none", admit_after=5),
    "lru": Policy("lru"),
    "lfu": Policy("lfu", ageing=True),
    "lfu, admit_after 2": Policy("lfu", ageing=True, admit_after=2),
    "timed": Policy("timed", horizon=20),
}


def stream(num_ids: int, batch: int, recent: int) -> list[Tensor]:
    """Batches of ids, any 64 bits each; old ones are among so many recent ones."""
    generator = torch.Generator().manual_seed(0)
    batches, seen = [], 0
    for _ in range(num_ids // batch):
        new = batch // 2 if seen else batch
        age = torch.randint(max(min(seen, recent), 1), (batch - new,), generator=generator)
        numbers = torch.cat([torch.arange(seen, seen + new), seen - 1 - age])
        seen += new
        shuffled = numbers[torch.randperm(batch, generator=generator)]
        batches.append(shuffled * 0x9E3779B97F4A7C1 ^ 0x5DEECE66D)  # apart from each other
    return batches


def measure(policy: Policy, batches: list[Tensor], rows: int) -> dict[str, float]:
    """Ids a second, and what the map came to."""
    ids = IdMap(BUCKETS, 0, BUCKETS, rows // BUCKETS, rows // BUCKETS, policy)
    start = time.perf_counter()
    for batch in batches:
        distinct, inverse, counts = deduplicate(batch)
        ids.assign(distinct, counts).rows[inverse]
    seconds = time.perf_counter() - start
    used, given = ids.summaries[:, 2:].sum(0).tolist()
    return {
        "ids_per_second": sum(map(len, batches)) / seconds,
        "rows_in_use": used,
        "promotions": given,
        "evictions": given - used,
        "bytes_per_row": ids.num_bytes / rows,
    }


def measure_hash(batches: list[Tensor], rows: int) -> dict[str, float]:
    """The same of rows that hashes name, which nobody keeps."""
    start = time.perf_counter()
    for batch in batches:
        hashed_rows(batch, rows)
    seconds = time.perf_counter() - start
    return {
        "ids_per_second": sum(map(len, batches)) / seconds,
        "rows_in_use": rows,
        "promotions": 0,
        "evictions": 0,
        "bytes_per_row": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="deltarec bench assign", description=__doc__)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    batches = stream(options.ids, options.batch, options.rows // 4)
    results = {}
    for name, policy in POLICIES.items():
        found = (
            measure(policy, batches, options.rows)
            if policy
            else measure_hash(batches, options.rows)
        )
        results[name] = found
        print(
            f"{name:20} {found['ids_per_second']:>12,.0f} ids/s  {found['promotions']:>10,} rows "
            f"given {found['evictions']:>10,} taken  {found['bytes_per_row']:.0f} bytes a row",
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
