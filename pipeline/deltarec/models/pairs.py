# SPDX-License-Identifier: Apache-2.0
"""The network of pairwise tasks: each sample's query against its item and the negatives drawn.

Rendle et al., 2009, BPR: the loss of a sample is -log sigmoid(score of its item - score of a
negative), the mean over its negatives.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltarec.data.batch import Batch
from deltarec.data.schema import Schema
from deltarec.embeddings.collections import embedded, fake_quantisers
from deltarec.embeddings.tables import TableSpec
from deltarec.layers.dropout import sample_keys, set_sample_keys
from deltarec.layers.rows import seeing
from deltarec.models import PAIR_MODELS
from deltarec.models.losses import LossTerm
from deltarec.models.roles import Fields, FieldShapes, PairConfig, Side


class PairNetwork(nn.Module):
    """Everything right of the tables, of a job of pairwise tasks.

    Args:
        config: the pair model's.
        schema: features and tasks.
        tables: for the widths of the fields.
        seed: of the dropout masks.
        bf16: whether to compute in bfloat16 where autocast allows it.
    """

    def __init__(
        self,
        config: PairConfig,
        schema: Schema,
        tables: Mapping[str, TableSpec],
        seed: int,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.seed = seed
        self.bf16 = bf16
        self.l2 = config.l2
        self.fake_quantisers = fake_quantisers(tables)
        sides = {
            name: (_side(task.query, schema, tables), _side(task.item, schema, tables))
            for name, task in schema.tasks.items()
        }
        self.pair = PAIR_MODELS[config.name](config, sides)

    def forward(self, batch: Batch, outputs: list) -> Tensor:
        """From a batch and the outputs of its tables to columns `[B, C]`.

        They are the scores of the samples' items `[B, T]`; then, for each task, those of its
        negatives; then the tasks' penalties `[B, T]`.
        """
        fields = self._fields(batch, outputs)
        scores, negatives, penalties = [], [], []
        for t, (name, task) in enumerate(self.schema.tasks.items()):
            drawn = [n for n, f in self.schema.drawn.items() if f.task == name]
            sides = [self._take(fields, task.query)]
            sides += [self._take(fields, [feature]) for feature in (task.item[0], *drawn)]
            query, *items = (
                self._encode(side, partial(self.pair.item if n else self.pair.query, name), (t, n))
                for n, side in enumerate(sides)
            )
            found = [(query * item).sum(1) for item in items]
            scores.append(found[0])
            negatives += found[1:]
            penalties.append(self._penalty(sides))
        return cast(Tensor, _Columns.apply(*scores, *negatives, *penalties))

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        """The terms of the tasks' losses; arguments as in `TaskHeads.losses`."""
        num_tasks = len(self.schema.tasks)
        scores, *negatives = columns.split(
            [num_tasks, *(task.negatives for task in self.schema.tasks.values()), num_tasks], dim=1
        )
        penalties = negatives.pop()
        terms = []
        for t, negative in enumerate(negatives):
            value = F.softplus(negative - scores[:, t : t + 1]).mean(1)
            terms.append(LossTerm(t, value + self.l2 * penalties[:, t], mask[:, t]))
        return terms

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters that one task alone reaches."""
        tasks = [{id(p) for p in self.pair.reached(task)} for task in self.schema.tasks]
        return [p for p in self.pair.parameters() if sum(id(p) in task for task in tasks) < 2]

    def query(self, task: str, batch: Batch, outputs: list) -> Tensor:
        """The vectors of the batch's queries of a task, `[B, D]`."""
        fields = self._fields(batch, outputs)
        return self.pair.query(task, self._take(fields, self.schema.tasks[task].query))

    def item(self, task: str, batch: Batch, outputs: list) -> Tensor:
        """The vectors of the batch's items of a task, `[B, D]`."""
        fields = self._fields(batch, outputs)
        return self.pair.item(task, self._take(fields, self.schema.tasks[task].item))

    def _fields(self, batch: Batch, outputs: list) -> dict[str, Tensor]:
        """The vectors of all features `[B, D]`, dense ones too `[B, 1]`."""
        set_sample_keys(self, sample_keys(batch.index, self.seed, batch.epoch))
        found = embedded(self.schema, outputs, batch, self.fake_quantisers).pooled
        dense = zip(self.schema.dense, batch.dense.unsqueeze(2).unbind(1), strict=True)
        return found | dict(dense)

    def _take(self, fields: dict[str, Tensor], features: list[str]) -> Fields:
        """Some features; dense ones are put together."""
        none = fields[features[0]].new_empty(len(fields[features[0]]), 0)
        dense = [fields[name] for name in features if name in self.schema.dense]
        vectors = [fields[name] for name in features if name not in self.schema.dense]
        return Fields(vectors, torch.cat([none, *dense], dim=1))

    def _encode(
        self, fields: Fields, encode: Callable[[Fields], Tensor], place: tuple[int, int]
    ) -> Tensor:
        """The vectors of a side, float32 `[B, D]`.

        `place` tells one use of a tower from others, for its dropout.
        """
        device = fields.dense.device
        rows = torch.arange(len(fields.dense), device=device)
        number = torch.full_like(rows, (place[0] << 16) + place[1])
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)
        with seeing(self.pair, rows, number), autocast:
            return encode(fields).float()

    def _penalty(self, sides: list[Fields]) -> Tensor:
        """Half the squared length of all vectors of each sample, `[B]`; zeros where not wanted."""
        total = sides[0].dense.new_zeros(len(sides[0].dense))
        if self.l2:
            total = sum(((v * v).sum(1) for side in sides for v in side.vectors), total) / 2
        return total


class _Columns(torch.autograd.Function):
    """Columns `[B]` side by side; where the gradient of one is zero, it has none.

    One task's backward (balancing by gradients has one for each) so ends at the tables' vectors of
    its own sides, and does not carry zeros through those of all others.
    """

    @staticmethod
    def forward(ctx: Any, *columns: Tensor) -> Tensor:
        return torch.stack(columns, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        [gradient] = gradients
        reached = (gradient != 0).any(0).tolist()
        parts = gradient.unbind(1)
        return tuple(part if there else None for part, there in zip(parts, reached, strict=True))


def _side(features: list[str], schema: Schema, tables: Mapping[str, TableSpec]) -> Side:
    sparse = [name for name in features if name in schema.sparse]
    used = tuple(schema.table(name) for name in sparse)
    dims = tuple(tables[table].dim for table in used)
    return Side(used, FieldShapes(dims, len(features) - len(sparse), tuple(sparse)))
