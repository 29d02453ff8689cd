# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltarec.data.subgraphs import SubgraphConfig, SubgraphSampler
from deltarec.layers.graph import bipartite
from tests.pair_job import ITEMS, USERS, pair_job

GRAPH = {"name": "cigcn", "user": "user", "behaviours": ["item", "other"], "layers": 2}


def sampler(folder: Path, nodes: int, hops: int) -> tuple[SubgraphSampler, Tensor]:
    """One over random graphs of two behaviours; their union's edges by equal parts, `[N, N]`."""
    overrides: dict[str, Any] = {
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id", "optional": True},
            "other": {"kind": "id", "table": "item", "optional": True},
        },
        "tasks": {"listen": {"kind": "pairwise", "query": ["user"], "item": ["item"]}},
        "model__pair": {"name": "mesi"},
        "model__graph": GRAPH,
    }
    schema = pair_job(folder, **overrides).data_schema
    random = np.random.default_rng(0)
    edges = [
        bipartite(random.integers(0, USERS, 150), random.integers(0, ITEMS, 150), (USERS, ITEMS))
        for _ in GRAPH["behaviours"]
    ]
    total: Any = sum(edges)
    union = torch.from_numpy((total.toarray() > 0).astype(float))
    config = SubgraphConfig(nodes=nodes, hops=hops)
    made = SubgraphSampler(config, schema, edges, seed=0)
    return made, union / union.sum(1, keepdim=True).clamp(min=1)


def test_nodes_are_drawn_by_the_square_of_what_reaches_them(tmp_path: Path):
    drawing, spread = sampler(tmp_path, nodes=1, hops=1)
    seeds = torch.tensor([0, 3, USERS + 7])
    reach = spread[seeds].sum(0)
    reach[seeds] = 0
    drawn = torch.zeros(USERS + ITEMS)
    number = 4000
    for place in range(number):
        found = drawing.around(seeds, torch.tensor([place]))
        assert found.tolist() == sorted({*seeds.tolist(), *found.tolist()}) and len(found) == 5
        drawn[found] += 1
    is_item = torch.arange(USERS + ITEMS) >= USERS
    for side in (is_item, ~is_item):
        weights = torch.where(side, reach**2, 0)
        expected = weights / weights.sum()
        share = torch.where(side, drawn, 0) / number
        share[seeds] = 0
        deviation = (expected * (1 - expected) / number).sqrt()
        assert ((share - expected).abs() <= 4.5 * deviation).all()


def test_hops_go_on_from_what_was_found_and_places_draw_anew(tmp_path: Path):
    drawing, spread = sampler(tmp_path, nodes=1000, hops=2)
    seeds = torch.tensor([0])
    wanted = (torch.matrix_power(spread, 2) + spread + torch.eye(len(spread)))[0].nonzero()
    assert torch.equal(drawing.around(seeds, torch.tensor([0])), wanted.flatten())
    few, _ = sampler(tmp_path, nodes=4, hops=2)
    first, again, other = (few.around(seeds, torch.tensor([0, n])) for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first) <= 1 + 2 * 2 * 4
