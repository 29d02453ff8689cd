# SPDX-License-Identifier: Apache-2.0
"""Any task heads over a pair: the query's and the item's vectors side by side."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from deltarec.models.roles import Fields, PairConfig, PairModel, Side, merged


class Joined(PairModel):
    """The score of a task is its logit by `model.heads` of [u; i].

    A graph's vectors are summed over the behaviours. So shared_bottom, mmoe, ple and the others
    score pairs: one input for all tasks. In a ranking each pair goes through the heads by itself.
    """

    class Config(PairConfig):
        """Options of joined."""

        name: Literal["joined"]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: Any, sides: Mapping[str, tuple[Side, Side]]) -> None:
        super().__init__(config, sides)
        self.tasks = list(sides)
        widths = {
            sum(side.shapes.width // max(1, len(side.behaviours)) for side in pair)
            for pair in sides.values()
        }
        if len(widths) > 1:
            raise ValueError(
                f"model.pair joined: the pairs of the tasks are {sorted(widths)} wide; the heads "
                "are shared, so give them sides of one width"
            )
        self.behaviours = {
            task: tuple(max(1, len(side.behaviours)) for side in pair)
            for task, pair in sides.items()
        }
        [self.heads_dim] = widths
        self.numbers_per_score = 16 * self.heads_dim

    def query(self, task: str, fields: Fields) -> Tensor:
        return merged(fields.flat(), self.behaviours[task][0])

    def item(self, task: str, fields: Fields) -> Tensor:
        return merged(fields.flat(), self.behaviours[task][1])

    def score(self, task: str, query: Tensor, item: Tensor) -> Tensor:
        return self.heads(torch.cat([query, item], dim=1))[:, self.tasks.index(task)]

    def scores(self, task: str, queries: Tensor, items: Tensor) -> Tensor:
        shape = len(queries), len(items)
        left = queries.unsqueeze(1).expand(*shape, -1).flatten(0, 1)
        right = items.unsqueeze(0).expand(*shape, -1).flatten(0, 1)
        return self.score(task, left, right).view(shape)
