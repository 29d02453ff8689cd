# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.data.schema import Task
from deltarec.models import TASK_HEADS
from deltarec.models.cascade import (
    chain_of,
    joint_labels,
    joint_log_probabilities,
    joint_tasks,
    parents_of,
    with_joint_tasks,
)
from tests.models.reference import CHAINED, chained_labels, leaf, path

PARENTS = [None, 0, 1]


def test_parents_and_chains():
    assert parents_of(CHAINED) == [None, 0, None, 1, 0]
    assert chain_of(CHAINED, "keep") == ["click", "buy", "keep"]
    assert chain_of(CHAINED, "time") == ["time"]


def test_joint_probabilities_are_products():
    logits = leaf(6, 3)
    positive, negative = joint_log_probabilities(logits, PARENTS)
    products = logits.sigmoid().cumprod(dim=1)
    torch.testing.assert_close(torch.stack(positive, 1), products.log())
    torch.testing.assert_close(torch.stack(negative, 1), (1 - products).log())


@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(size: float):
    """Where the product of float32 probabilities is 0 or 1, and its logarithm infinite."""
    signs = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * 3)
    logits = signs.requires_grad_()
    positive, negative = joint_log_probabilities(logits, PARENTS)
    both = torch.stack(positive + negative)
    both.sum().backward()
    assert both.isfinite().all() and (both < 1e-7).all()
    assert logits.grad is not None and logits.grad.isfinite().all()
    certain = signs.detach().gt(0).all(dim=1)
    torch.testing.assert_close(negative[2][certain], torch.tensor([-size]), rtol=0, atol=1.1)


def test_joint_labels():
    """Of click, buy, keep: a negative parent makes a label 0, an unread one makes it unknown."""
    unread, unknown = -1, -1
    for labels, joint in [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (1, 0, 0)),
        ((1, 1, 0), (1, 1, 0)),
        ((1, 1, 1), (1, 1, 1)),
        ((1, 0, 1), (1, 0, 0)),
        ((1, 1, unread), (1, 1, unknown)),
        ((1, unread, 1), (1, unknown, unknown)),
        ((unread, 1, 1), (unknown, unknown, unknown)),
    ]:
        alive = [labels[t] >= 0 and all(label == 1 for label in labels[:t]) for t in range(3)]
        found, known = joint_labels(torch.tensor([labels]).float(), torch.tensor([alive]), PARENTS)
        got = [y.item() if k else unknown for y, k in zip(found, known, strict=True)]
        assert got == list(joint), labels


def test_joint_tasks_are_measured_over_all_samples():
    names = list(CHAINED)
    predictions = torch.rand(24, len(names), dtype=torch.float64)
    labels, mask = chained_labels()
    assert joint_tasks(CHAINED) == {"click*buy": 1, "click*buy*keep": 3, "click*like": 4}
    columns = with_joint_tasks(predictions, labels, mask, CHAINED)
    for whole, own in zip(columns, (predictions, labels, mask), strict=True):
        assert whole.shape == (24, 8) and torch.equal(whole[:, :5], own)
    joint, known = joint_labels(labels, mask, parents_of(CHAINED))
    for column, name in enumerate(["buy", "keep", "like"], start=5):
        t = names.index(name)
        steps = [names.index(step) for step in path(name)]
        torch.testing.assert_close(columns[0][:, column], predictions[:, steps].prod(dim=1))
        assert torch.equal(columns[1][:, column], joint[t])
        assert torch.equal(columns[2][:, column], known[t])
    alone = {"time": CHAINED["time"]}
    assert with_joint_tasks(predictions[:, :1], labels[:, :1], mask[:, :1], alone)[0].shape == (
        24,
        1,
    )


CASCADES = ("esmm", "multi_ipw", "multi_dr", "escm2", "aitm")


@pytest.mark.parametrize("name", CASCADES)
def test_tasks_without_a_chain_are_refused(name: str):
    config = TASK_HEADS[name].Config(name=name)  # pyright: ignore[reportCallIssue]
    with pytest.raises(
        ValueError, match=rf"heads: {name} models a chain .* \['a', 'b'\] is 'given"
    ):
        TASK_HEADS[name](config, 4, {"a": Task(), "b": Task()})
    tasks = {"a": Task(), "b": Task(kind="regression", given="a")}
    with pytest.raises(ValueError, match=r"'b', given 'a', is regression; make it binary, or"):
        TASK_HEADS[name](config, 4, tasks)
