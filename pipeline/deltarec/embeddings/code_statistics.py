# SPDX-License-Identifier: Apache-2.0
"""How quantised tables fare: the size of their steps, and the share of codes at their bounds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from deltarec.embeddings.quantised_collections import QuantisedTables
from deltarec.embeddings.quantised_kernel import QuantisedKernel
from deltarec.embeddings.tables import TableSpec
from deltarec_kernels.packing import unpack
from deltarec_kernels.rounding import bounds

SAMPLED_ROWS = 2**12
"""Of each shard, evenly spaced: a look at all rows would take longer than many steps."""
LARGE = {8: 0.05, 4: 0.3, 2: 0.8}
"""Shares of saturated codes that are worth a warning. Codes spread evenly over their range have
2 / 2^bits at its bounds: 0.01, 0.13 and 0.5."""


@dataclass(frozen=True)
class CodeStatistics:
    """Of one table, over all ranks."""

    mean_step: float
    min_step: float
    max_step: float
    saturated: float
    """Share of codes that are the lowest or the highest there is."""

    def logged(self, table: str) -> dict[str, float]:
        """As metrics by name."""
        return {
            f"step_mean/{table}": self.mean_step,
            f"step_min/{table}": self.min_step,
            f"step_max/{table}": self.max_step,
            f"saturated/{table}": self.saturated,
        }


def code_statistics(
    collections: Iterable[QuantisedTables], tables: Mapping[str, TableSpec]
) -> dict[str, CodeStatistics]:
    """Statistics of the quantised among the tables; a collective, equal on every rank."""
    names = [n for n, table in tables.items() if table.quantisation and not table.frozen]
    # Sum and number of steps, number of saturated and of all codes; then the largest and the
    # negative of the smallest step.
    sums = torch.zeros(len(names), 4, dtype=torch.float64)
    extremes = torch.full((len(names), 2), -torch.inf, dtype=torch.float64)
    for collection in collections:
        if collection.frozen:
            continue
        for kernel in collection.kernels():
            for name, index, _ in kernel.shards():
                step, saturated = _sampled(kernel, index)
                row = names.index(name)
                sums[row] += torch.tensor(
                    [step.sum(), step.numel(), saturated.sum(), saturated.numel()]
                )
                found = torch.stack([step.max(), -step.min()]).cpu()
                extremes[row] = torch.maximum(extremes[row], found)
    dist.all_reduce(sums)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return {
        name: CodeStatistics(steps / num_steps, -smallest, largest, saturated / codes)
        for name, (steps, num_steps, saturated, codes), (largest, smallest) in zip(
            names, sums.tolist(), extremes.tolist(), strict=True
        )
    }


def saturation_warning(table: TableSpec, found: CodeStatistics) -> str | None:
    """A line for people, if many codes of a table stand at their bounds."""
    assert table.quantisation is not None
    if found.saturated < LARGE[table.quantisation.bits]:
        return None
    mend = (
        "raise embedding.alpt.step_optimizer.lr or embedding.initial_step"
        if table.quantisation.alpt
        else "raise embedding.initial_step, or learn it by embedding.step=learned"
    )
    return (
        f"warning: {found.saturated:.0%} of the {table.precision} codes of table '{table.name}' "
        f"are at their bounds, its step is {found.mean_step:.2g}: {mend}"
    )


def _sampled(kernel: QuantisedKernel, index: int) -> tuple[Tensor, Tensor]:
    """Steps `[rows, blocks]` and whether codes are saturated `[rows, dim]`, of sampled rows."""
    tables = kernel.tables
    layout = tables.layouts[index]
    stride = -(-layout.rows // SAMPLED_ROWS)
    codes = unpack(tables.codes_of(index)[::stride].contiguous(), tables.bits, layout.dim)
    low, high = bounds(tables.bits)
    return tables.step_of(index)[::stride].double(), (codes == low) | (codes == high)
