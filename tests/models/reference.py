# SPDX-License-Identifier: Apache-2.0
"""Plain mathematics of one sample, with a module's own weights; and how results are compared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltarec.data.schema import Task
from deltarec.layers.towers import Towers
from deltarec.models.losses import LossTerm
from deltarec.models.roles import Fields, FieldShapes, TaskHeads

SHAPES = FieldShapes(dims=(4, 4, 4), num_dense=2)


def fields(shapes: FieldShapes = SHAPES, samples: int = 5) -> tuple[Fields, list[Tensor]]:
    """Random inputs of a trunk, float64, and the same tensors as a list of leaves."""
    vectors = [leaf(samples, dim) for dim in shapes.dims]
    dense = leaf(samples, shapes.num_dense)
    return Fields(vectors, dense), [*vectors, dense]


def flat(inputs: Fields, sample: int) -> Tensor:
    """All inputs of one sample side by side."""
    return torch.cat([*[vector[sample] for vector in inputs.vectors], inputs.dense[sample]])


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def linear(layer: Any, x: Tensor) -> Tensor:
    """W x + b of one sample `[D]`."""
    return layer.weight @ x + layer.bias


def mlp(model: Any, x: Tensor) -> Tensor:
    """One sample `[D]` through linear layers and ReLUs."""
    for layer in model:
        x = linear(layer, x) if isinstance(layer, nn.Linear) else x * (x > 0)
    return x


def assert_equal(model: nn.Module, got: Tensor, wanted: Tensor, inputs: Sequence[Tensor]) -> None:
    """Outputs, and gradients of all parameters and inputs for random upstream gradients."""
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert got.shape == wanted.shape
    upstream = torch.randn_like(got)
    leaves = dict(model.named_parameters()) | {f"input {i}": x for i, x in enumerate(inputs)}
    mine, theirs = (
        torch.autograd.grad(output, list(leaves.values()), upstream, materialize_grads=True)
        for output in (got, wanted)
    )
    for name, first, second in zip(leaves, mine, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9, msg=name)


PARALLEL: dict[str, Task] = {"like": Task(), "share": Task(positive_weight=2.0), "save": Task()}
CHAINED: dict[str, Task] = {
    "click": Task(mask="seen"),
    "buy": Task(given="click", positive_weight=2.0),
    "time": Task(kind="regression"),
    "keep": Task(given="buy", on_invalid="mask"),
    "like": Task(given="click"),
}
"""Two chains that share their root, a task that stands alone, and samples of unknown labels."""


def chained_labels(samples: int = 24) -> tuple[Tensor, Tensor]:
    """Labels float64 and mask `[samples, T]` of `CHAINED`, as the reader makes them."""
    names = list(CHAINED)
    labels = (torch.rand(samples, len(names)) < 0.6).double()
    labels[:, names.index("time")] = torch.randn(samples, dtype=torch.float64)
    mask = torch.ones(labels.shape, dtype=torch.bool)
    for t, (name, task) in enumerate(CHAINED.items()):
        if task.given:
            parent = names.index(task.given)
            mask[:, t] = mask[:, parent] & (labels[:, parent] == 1)
        if name in ("click", "keep"):
            mask[:, t] &= torch.rand(samples) < 0.8
    return labels, mask


def tower(towers: Towers, k: int, x: Tensor) -> Tensor:
    """The k-th tower's number of one sample, `[1]`."""
    return linear(towers.logits[k], mlp(towers.towers[k], x))


def mixed(gate: Any, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Σ_e softmax(W x + b)_e outputs_e of one sample."""
    scores = [score.exp() for score in linear(gate, x)]
    parts = [s / sum(scores) * output for s, output in zip(scores, outputs, strict=True)]
    return torch.stack(parts).sum(0)


def means(terms: Sequence[LossTerm], num_tasks: int) -> Tensor:
    """The tasks' losses `[T]` of one process without sample weights."""
    losses = torch.zeros(num_tasks, dtype=torch.float64)
    for term in terms:
        value = term.value[term.samples].mean()
        losses = losses.index_add(0, torch.tensor([term.task]), value.unsqueeze(0))
    return losses


def path(name: str) -> list[str]:
    """The names from the root of a task's chain to the task."""
    given = CHAINED[name].given
    return [*path(given), name] if given else [name]


def logistic(probability: Tensor, label: Any, positive_weight: float) -> Tensor:
    """−q y log p − (1 − y) log(1 − p), as it is written."""
    return -(positive_weight * label * probability.log() + (1 - label) * (1 - probability).log())


def check_chained_losses(
    model: TaskHeads,
    loss_of: Callable[[int, list[Tensor], Tensor, dict[str, float], bool], Tensor],
) -> None:
    """Compare a head's losses on `CHAINED`, and their gradients, with a loop over samples.

    Args:
        model: the head, double, on inputs of width 4.
        loss_of: the loss of one sample for a conditional task, from the task's position, the tasks'
            probabilities, the sample's columns, its labels and whether the task's own is observed.
    """
    labels, mask = chained_labels()
    x = leaf(len(labels), 4)
    columns = model(x)
    names = list(CHAINED)
    wanted = []
    for t, (name, task) in enumerate(CHAINED.items()):
        samples = []
        for row, label, lives in zip(columns, labels.tolist(), mask.tolist(), strict=True):
            known = dict(zip(names, label, strict=True))
            alive = dict(zip(names, lives, strict=True))
            chances = [value.sigmoid() for value in row]
            if task.given is None:
                if lives[t] and task.kind == "binary":
                    samples.append(logistic(chances[t], label[t], task.positive_weight))
                elif lives[t]:
                    samples.append((row[t] - label[t]) ** 2)
                continue
            # down the chain: a negative ends it, what the mask leaves out makes it unknown
            for step in path(name):
                if not alive[step]:
                    break
                if known[step] == 0 or step == name:
                    samples.append(loss_of(t, chances, row, known, alive[name]))
                    break
        assert samples
        wanted.append(torch.stack(samples).mean())
    got = means(model.losses(model(x), labels, mask), len(CHAINED))
    assert_equal(model, got, torch.stack(wanted), [x])
