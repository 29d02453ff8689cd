# SPDX-License-Identifier: Apache-2.0
"""Chains of tasks, as in impression → click → purchase, seen from all samples.

`given` makes a chain: task k lives on the positive samples of its parent, and its logit z_k is that
of p_k = P(k | parent), for all heads alike. Its **joint** probability, that it and all before it
happen, is P_k = P_parent p_k; it is a statement about every sample (the *entire space*), with the
joint label y_k = y_parent · label, which is known to be 0 wherever the parent's is.

Products of probabilities are never formed before a logarithm. Down a chain,

    log P_k = log P_parent + log σ(z_k),
    1 − P_k = (1 − P_parent) + P_parent (1 − σ(z_k)),  a sum of two positive terms.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from deltarec.data.schema import Task
from deltarec.layers.mlp import MLPConfig
from deltarec.layers.towers import Towers
from deltarec.models.losses import LossTerm, cross_entropy, direct_terms
from deltarec.models.roles import TaskHeads


def parents_of(tasks: Mapping[str, Task]) -> list[int | None]:
    """The position of each task's parent, which stands before it; None for one without."""
    positions = {name: t for t, name in enumerate(tasks)}
    return [None if task.given is None else positions[task.given] for task in tasks.values()]


def chain_of(tasks: Mapping[str, Task], name: str) -> list[str]:
    """A task's name after those of all that must happen before it."""
    given = tasks[name].given
    return [*(chain_of(tasks, given) if given else []), name]


def joint_tasks(tasks: Mapping[str, Task]) -> dict[str, int]:
    """What evaluation measures beside the tasks: `click*buy`, with the position of buy."""
    return {
        "*".join(chain_of(tasks, name)): t
        for t, (name, task) in enumerate(tasks.items())
        if task.given and task.kind == "binary"
    }


def with_joint_tasks(
    predictions: Tensor, labels: Tensor, mask: Tensor, tasks: Mapping[str, Task]
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, labels and mask `[B, T]` with a column more for each of the `joint_tasks`.

    The prediction is P_k: whatever the heads, a conversion can be judged over all samples.
    """
    parents = parents_of(tasks)
    chances: list[Tensor] = []
    for t, parent in enumerate(parents):
        own = predictions[:, t]
        chances.append(own if parent is None else chances[parent] * own)
    joint, known = joint_labels(labels, mask, parents)
    added = list(joint_tasks(tasks).values())
    columns = [(predictions, chances), (labels, joint), (mask, known)]
    whole = [torch.stack([*own.unbind(1), *[more[t] for t in added]], 1) for own, more in columns]
    return whole[0], whole[1], whole[2]


def joint_log_probabilities(
    logits: Tensor, parents: Sequence[int | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """Logarithms of P_k and 1 − P_k of binary tasks, T tensors `[B]` each, from logits `[B, T]`.

    What stands at a regression task means nothing.
    """
    positive: list[Tensor] = []
    negative: list[Tensor] = []
    for t, parent in enumerate(parents):
        own, not_own = F.logsigmoid(logits[:, t]), F.logsigmoid(-logits[:, t])
        if parent is None:
            positive.append(own)
            negative.append(not_own)
        else:
            positive.append(positive[parent] + own)
            negative.append(torch.logaddexp(negative[parent], positive[parent] + not_own))
    return positive, negative


def joint_labels(
    labels: Tensor, mask: Tensor, parents: Sequence[int | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """The joint labels and where they are known, T tensors `[B]` each, of labels and mask `[B, T]`.

    A sample whose parent is positive, but which the task's own mask leaves out, is not known.
    """
    joint: list[Tensor] = []
    known: list[Tensor] = []
    for t, parent in enumerate(parents):
        joint.append(torch.where(mask[:, t], labels[:, t], 0))
        if parent is None:
            known.append(mask[:, t])
        else:
            known.append(known[parent] & ((joint[parent] == 0) | mask[:, t]))
    return joint, known


@dataclass(frozen=True)
class EntireSpace:
    """A batch's tasks as statements about every sample: what the losses of a chain are made of."""

    columns: Tensor
    """`[B, C]`, the tasks' logits first."""
    labels: Tensor
    """`[B, T]`, of the tasks' own samples."""
    mask: Tensor
    """Bool `[B, T]`: which those are."""
    log_positive: list[Tensor]
    """log P_k, T tensors `[B]`."""
    log_negative: list[Tensor]
    """log(1 - P_k), T tensors `[B]`."""
    joint: list[Tensor]
    """The joint labels, T tensors `[B]`."""
    known: list[Tensor]
    """Bool: where they are known, T tensors `[B]`."""

    @classmethod
    def of(
        cls, columns: Tensor, labels: Tensor, mask: Tensor, parents: Sequence[int | None]
    ) -> "EntireSpace":
        log_positive, log_negative = joint_log_probabilities(columns, parents)
        joint, known = joint_labels(labels, mask, parents)
        return cls(columns, labels, mask, log_positive, log_negative, joint, known)

    def joint_loss(self, t: int, task: Task) -> Tensor:
        """The logistic loss of P_t and the joint label of each sample, `[B]`."""
        return cross_entropy(
            self.log_positive[t], self.log_negative[t], self.joint[t], task.positive_weight
        )


class CascadeConfig(MLPConfig):
    """The shape of one tower."""

    hidden: list[PositiveInt] = []  # noqa: RUF012  (pydantic copies defaults)
    """Widths of a task's tower, before its logit."""


class CascadeHeads(TaskHeads):
    """A tower for each task on the shared representation; base of the entire-space heads.

    Tasks without a parent keep their own loss.
    """

    def __init__(self, config: CascadeConfig, input_dim: int, tasks: Mapping[str, Task]) -> None:
        super().__init__(config, input_dim, tasks)
        require_chain(tasks, config.name)  # pyright: ignore[reportAttributeAccessIssue]
        self.parents = parents_of(tasks)
        self.towers = Towers(len(tasks), input_dim, config.hidden, config)

    def forward(self, representation: Tensor) -> Tensor:
        return self.towers([representation] * len(self.tasks))

    def losses(self, columns: Tensor, labels: Tensor, mask: Tensor) -> list[LossTerm]:
        space = EntireSpace.of(columns, labels, mask, self.parents)
        terms = direct_terms(self.tasks, columns, labels, mask)
        for t, parent in enumerate(self.parents):
            if parent is not None:
                terms[t] = LossTerm(t, self.chained_loss(space, t, parent), space.known[t])
        return terms

    @abstractmethod
    def chained_loss(self, space: EntireSpace, t: int, parent: int) -> Tensor:
        """The loss `[B]` of every sample for a task that has a parent."""


def require_chain(tasks: Mapping[str, Task], heads: str) -> None:
    """Check that entire-space heads can work with the tasks.

    Raises:
        ValueError: no task has a parent, or one that has is not binary.
    """
    if not any(task.given for task in tasks.values()):
        raise ValueError(
            f"model.heads: {heads} models a chain of tasks, and none of {list(tasks)} is 'given' "
            "another; set tasks.TASK.given, or choose heads for parallel tasks such as mmoe"
        )
    for name, task in tasks.items():
        if task.given and task.kind != "binary":
            raise ValueError(
                f"model.heads: {heads} multiplies probabilities along a chain, and task '{name}', "
                f"given '{task.given}', is {task.kind}; make it binary, or choose heads for "
                "parallel tasks such as mmoe"
            )
