# SPDX-License-Identifier: Apache-2.0
"""The interfaces of balancing methods: they weigh losses or samples, or need gradients.

What a method remembers from step to step is in persistent buffers, which checkpoints save. Whatever
it solves or draws comes from global quantities, in float64, so that all ranks find the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deltarec.balancing.gradients import TaskGradients
from deltarec.config import Config
from deltarec.data.batch import Batch
from deltarec.distributed import all_sum


class Balancer(nn.Module, ABC):
    """Makes of the tasks' losses what is summed and differentiated.

    Args:
        config: the method's options.
        tasks: names of the tasks, the main one first.
        seed: of what the method draws.
    """

    Config: type[Config]
    looks_again: bool = False
    """Whether `after_update` wants the losses of each batch after its update."""

    def __init__(self, config: Any, tasks: list[str], seed: int = 0) -> None:
        super().__init__()
        self.tasks = tasks
        self.num_steps = 0
        """Batches of the whole job."""
        self.is_logged = True
        """Told by the trainer before each step: whether `logged` will be asked of it."""
        self._last_weights: Tensor | None = None
        self._last_gram: Tensor | None = None

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """This rank's shares of the losses `[T]` to weighted losses `[T]`."""

    def again(self, losses: Tensor) -> Tensor:
        """The losses of a step's second pass, by the step's weights; nothing is learned of them."""
        weights = self._last_weights
        return losses if weights is None else losses * weights.to(losses)

    def after_update(self, losses: Tensor) -> None:
        """Told, if it `looks_again`, a batch's global losses `[T]` after its update, float64."""
        return

    def begin(self, num_steps: int) -> None:
        """Told by the trainer, before the first step, how many batches the whole job has."""
        self.num_steps = num_steps

    def after_epoch(self) -> None:
        """Told by the trainer after an epoch's last step."""
        return

    def note(self, weights: Tensor | None = None, gram: Tensor | None = None) -> None:
        """Keep what `logged` tells of this step, and the weights for `again`."""
        self._last_weights, self._last_gram = weights, gram

    def logged(self) -> dict[str, float]:
        """Of the last step: the tasks' weights, gradient norms and cosines, as far as known."""
        values: dict[str, float] = {}
        if self._last_weights is not None:
            for task, weight in zip(self.tasks, self._last_weights.tolist(), strict=True):
                values[f"weight/{task}"] = weight
        if self._last_gram is None:
            return values
        gram = self._last_gram.double().cpu()
        norms = gram.diagonal().clamp(min=0).sqrt()
        values |= {f"gradient_norm/{t}": n for t, n in zip(self.tasks, norms.tolist(), strict=True)}
        for i, first in enumerate(self.tasks):
            for j, second in enumerate(self.tasks[:i]):
                if norms[i] > 0 and norms[j] > 0:
                    cosine = gram[i, j] / (norms[i] * norms[j])
                    values[f"gradient_cosine/{second}/{first}"] = float(cosine)
        return values


class LossBalancer(Balancer):
    """Weighs the losses by weights that depend on the losses alone.

    A function f of the losses is minimised by the weights ∂f/∂L_k at the global losses: no rank
    knows these from its own samples.
    """

    @abstractmethod
    def weights(self, losses: Tensor) -> Tensor:
        """The tasks' weights for this step, equal on all ranks; once a training step.

        Args:
            losses: the tasks' losses over the global batch, float64 `[T]`.

        Returns:
            `[T]`
        """

    def forward(self, losses: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return losses
        with torch.no_grad():
            weights = self.weights(global_losses(losses))
        self.note(weights)
        return losses * weights.to(losses)


class SampleBalancer(Balancer):
    """Weighs the losses of single samples; what it is made of may learn from a loss of its own."""

    @abstractmethod
    def prepare(self, width: int) -> None:
        """Told once, before training, how wide the representation is."""

    @abstractmethod
    def sample_weights(
        self, batch: Batch, states: Tensor, actions: Tensor, losses: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weights of a batch's samples, once a training step, on all ranks.

        Args:
            batch: this rank's.
            states: the representations `[B, H]`, detached, like all that follows.
            actions: the predictions `[B, T]`.
            losses: of each sample and task `[B, T]`; 0 where the task has none.
            present: whether it has one, bool `[B, T]`.

        Returns:
            `[B, T]`, without gradients; and this rank's share of the method's own loss.
        """

    def forward(self, losses: Tensor) -> Tensor:
        """The losses as they are, in evaluations."""
        return losses


class GradientBalancer(Balancer):
    """Makes one gradient of the tasks' gradients; `gradients.py` says where they are taken."""

    def prepare(
        self,
        features: Sequence[str],
        tables: Mapping[str, int],
        shared: Sequence[Tensor],
        own: Sequence[Tensor],
    ) -> None:
        """Told once, before training, of all that has gradients.

        Args:
            features: names of the features at the boundary.
            tables: their tables' numbers of rows, in the order of the rows' keys.
            shared: dense parameters that several tasks reach, in the order of the gradients.
            own: likewise those that one task reaches.
        """
        return

    @abstractmethod
    def combine(self, gradients: TaskGradients) -> None:
        """Set the combined gradients; called once a training step, on all ranks."""

    def forward(self, losses: Tensor) -> Tensor:
        """The losses as they are, in evaluations."""
        return losses


class WeightingBalancer(GradientBalancer):
    """Sums the tasks' gradients with weights that depend on their inner products alone.

    The problem is as small as the tasks are few, so it is solved on the CPU.
    """

    @abstractmethod
    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """The tasks' weights, equal on all ranks.

        Args:
            gram: inner products of the tasks' gradients of the global batch, float64 `[T, T]`.
            losses: the tasks' losses over the global batch, float64 `[T]`.

        Returns:
            `[T]`
        """

    def combine(self, gradients: TaskGradients) -> None:
        gram = gradients.gram().cpu()
        losses = gradients.losses().cpu()
        if gram.isfinite().all():
            weights = self.weights(gram, losses)
        else:  # no problem has a solution then; the job stops at the next loss
            weights = torch.full_like(losses, torch.nan)
        self.note(weights, gram)
        gradients.weigh(weights)


class MemorylessBalancer(WeightingBalancer):
    """A `WeightingBalancer` without memory, whose problem has no place for a zero gradient.

    A task without samples in the batch has none. It gets weight 0, and the others are balanced as
    if it were not there.
    """

    @abstractmethod
    def solve(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Like `weights`, of tasks none of whose gradients is zero."""

    def weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        present = gram.diagonal() > 0
        weights = torch.zeros_like(losses)
        if present.any():
            weights[present] = self.solve(gram[present][:, present], losses[present])
        return weights


def global_losses(losses: Tensor) -> Tensor:
    """This rank's shares of the losses `[T]` to the losses over the global batch, float64."""
    return all_sum(losses.detach().double()) / dist.get_world_size()
