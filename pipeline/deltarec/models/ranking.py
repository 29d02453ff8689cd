# SPDX-License-Identifier: Apache-2.0
"""A ranking model: tables, then a network, then losses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltarec.balancing.balancer import Balancer, GradientBalancer, SampleBalancer
from deltarec.balancing.gradients import GradientBoundary
from deltarec.data.batch import Batch
from deltarec.data.schema import Task
from deltarec.embeddings.assignment import Assignments
from deltarec.embeddings.collections import EmbeddingTables
from deltarec.models.losses import TaskLosses
from deltarec.models.network import Network
from deltarec.models.pairs import PairNetwork


class RankingModel(nn.Module):
    """The whole model, as TorchRec's pipelines want it: a batch to (losses, output).

    `tables` reads nothing but the batch's attributes, so that a pipeline can start its exchanges
    one batch ahead; what comes after is traced as a few opaque steps. Batches come with rows for
    ids: `assignments` has given them before.
    """

    def __init__(
        self,
        tables: EmbeddingTables,
        network: Network | PairNetwork,
        balancer: Balancer,
        assignments: Assignments,
    ) -> None:
        super().__init__()
        self.assignments = assignments
        self.tables = tables
        self.network = network
        schema = network.schema
        self.num_tasks = len(schema.tasks)
        self.losses = TaskLosses(
            schema.tasks, network.losses, may_lose=schema.on_bad_file == "skip"
        )
        self.balancer = balancer
        self.boundary = None
        if isinstance(balancer, GradientBalancer):
            own = network.own_parameters()
            of_feature = {name: schema.table(name) for name in schema.trained}
            self.boundary = GradientBoundary(
                network,
                own,
                self.losses,
                balancer.combine,
                of_feature,
                by_row=isinstance(network, PairNetwork),
                frozen=set(schema.frozen),
            )
            rows = {table: schema.table_rows[table] for table in sorted(set(of_feature.values()))}
            balancer.prepare(schema.trained, rows, self.boundary.shared, own)
        elif isinstance(balancer, SampleBalancer):
            assert isinstance(network, Network)
            balancer.prepare(network.scenario.output_dim)
            self.boundary = WeighedSamples(network, self.losses, balancer)
        elif isinstance(network, Network) and network.alignment is not None:
            self.boundary = AlignedNetwork(network, self.losses, balancer)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Losses to sum and differentiate; detached, plain losses and logits `[B, T]`.

        The plain losses are the tasks' `[T]`, and in training those of alignment after them.
        """
        if self.boundary is not None and torch.is_grad_enabled():
            total, losses, columns = self.boundary(batch, self.tables(batch))
            return total, (losses, columns[:, : self.num_tasks])
        columns = self.network(batch, self.tables(batch))
        losses = self.losses(columns, batch)
        return self.balancer(losses), (losses.detach(), columns[:, : self.num_tasks].detach())


class WeighedSamples(nn.Module):
    """Runs a network and lets a balancing method weigh its losses sample by sample.

    Args:
        network: batch and outputs of the tables to representation and columns.
        losses: columns, batch and weights to this rank's shares of the losses.
        balancer: the method.
    """

    def __init__(self, network: Network, losses: TaskLosses, balancer: SampleBalancer) -> None:
        super().__init__()
        self._parts = (network, losses, balancer)  # not registered here a second time

    def forward(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate, of one element; detached, losses `[T]` and columns `[B, C]`."""
        network, losses, balancer = self._parts
        states, columns = network.represented(batch, outputs)
        with torch.no_grad():
            actions = predictions(columns, network.schema.tasks)
            found, present = losses.by_sample(columns, batch)
            plain = losses(columns, batch)
        weights, own = balancer.sample_weights(
            batch, states.detach().float(), actions, found, present
        )
        total = losses(columns, batch, weights).sum() + own
        return total.reshape(1), plain, columns.detach()


class AlignedNetwork(nn.Module):
    """Runs a network with its losses of alignment beside the tasks'.

    Args:
        network: that has some.
        losses: columns and batch to this rank's shares of the tasks' losses.
        balancer: of the tasks' losses.
    """

    def __init__(self, network: Network, losses: TaskLosses, balancer: Balancer) -> None:
        super().__init__()
        self._parts = (network, losses, balancer)  # not registered here a second time

    def forward(self, batch: Batch, outputs: list) -> tuple[Tensor, Tensor, Tensor]:
        """What to differentiate; detached, losses `[T + A]` and columns `[B, C]`."""
        network, losses, balancer = self._parts
        assert network.alignment is not None
        columns, shares = network.aligned(batch, outputs)
        found = losses(columns, batch)
        total = torch.cat([network.alignment.config.tasks * balancer(found), shares])
        return total, torch.cat([found, shares]).detach(), columns.detach()


def predictions(logits: Tensor, tasks: Mapping[str, Task]) -> Tensor:
    """Logits `[B, T]` to probabilities (binary tasks), values or scores, float32."""
    columns = [
        logits[:, t].float().sigmoid() if task.kind == "binary" else logits[:, t].float()
        for t, task in enumerate(tasks.values())
    ]
    return torch.stack(columns, dim=1)
