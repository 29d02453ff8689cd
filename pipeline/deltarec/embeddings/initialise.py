# SPDX-License-Identifier: Apache-2.0
"""Initial weights that depend on the seed, the table and the row, and not on the sharding."""

import hashlib

import torch
from torch import Tensor

CHUNK_ROWS = 4096
"""Rows drawn from one generator."""


def initial_rows(table: str, start: int, stop: int, dim: int, std: float, seed: int) -> Tensor:
    """Rows [start, stop) of a table's initial weights, normal around 0: `[stop - start, dim]`."""
    parts = []
    for chunk in range(start // CHUNK_ROWS, -(-stop // CHUNK_ROWS)):
        key = hashlib.sha256(f"{seed}/{table}/{chunk}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
        rows = torch.randn(CHUNK_ROWS, dim, generator=generator).mul_(std)
        first = chunk * CHUNK_ROWS
        parts.append(rows[max(start - first, 0) : stop - first])
    return torch.cat(parts) if parts else torch.empty(0, dim)
