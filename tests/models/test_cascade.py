# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from deltarec.data.schema import Task
from deltarec.models import TASK_HEADS
from deltarec.models.cascade import chain_of, joint_labels, joint_log_probabilities, parents_of
from tests.models.reference import CHAINED, leaf

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
